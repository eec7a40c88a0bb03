"What the tests of archives and of shards share: images whose color is their number"

import itertools
import pytest, torch
from jepa_lit.data import Images


def coded(n, labels=5, size=4):
    "Images whose color is their number"
    i = torch.arange(n)
    pixels = (
        torch.stack([i % 256, i // 256, i * 0 + 7], 1)
        .to(torch.uint8)[:, :, None, None]
        .expand(n, 3, size, size)
    )
    return Images(pixels.contiguous(), i % labels if labels else None, tuple('abcde')[:labels])


def number(x):
    return (x[:, 0, 0, 0].long() + 256 * x[:, 1, 0, 0].long()).tolist()


def take(stream, n):
    return list(itertools.islice(stream, n))


def ids(stream, n):
    return [number(x) for x in take(stream, n)]


def copy(made, to, kind='tar'):
    to.mkdir()
    for p in (made / kind).iterdir():
        (to / p.name).write_bytes(p.read_bytes())
    return to, sorted(to.glob(f'*.{kind}'))


def one_line(call, kind, *parts):
    with pytest.raises(kind) as e:
        call()
    text = str(e.value)
    assert text and '\n' not in text and all(p in text for p in parts), text


@pytest.fixture(autouse=True)
def alone(tmp_path_factory, monkeypatch):
    home = tmp_path_factory.mktemp('home')
    monkeypatch.setenv('HOME', str(home))
    monkeypatch.setenv('JEPA_LIT_CACHE', str(home / 'cache'))
    monkeypatch.delenv('JEPA_LIT_MISSING', raising=False)
    return home

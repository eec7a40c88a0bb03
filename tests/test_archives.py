"Archives of either kind: written, found, counted once, read from any sample on, and what is missing of them"

import json, os, sys
from pathlib import Path
import pytest, torch
from jepa_lit.archives import (
    count_shard,
    count_shards,
    decode_sample,
    find_shards,
    mark,
    missing_shards,
    open_shard,
    survey,
    write_shards,
)
from jepa_lit.datasets import load
from shard_checks import alone, coded, copy, number, one_line  # noqa: F401

pytest.importorskip('pyarrow', reason='needs pyarrow, which is not installed')
pytestmark = pytest.mark.usefixtures('unchecked')
both = pytest.mark.parametrize('kind', ['tar', 'parquet'])


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "203 images in 9 shards, as tar and as parquet"
    root = tmp_path_factory.mktemp('shards')
    for kind in ('tar', 'parquet'):
        write_shards(coded(203), root / kind, 24, kind)
    return root


@both
def test_round_trip(tmp_path, kind):
    data = load('digits', size=8).test.select(range(50))
    root = tmp_path / 'a [b]*?'  # a folder with the letters of a pattern
    paths = [str(p) for p in write_shards(data, root, 20, kind)]
    assert [os.path.basename(p) for p in paths] == [f'train-{i:05d}-of-00003.{kind}' for i in range(3)]
    assert sorted(os.listdir(root)) == ['classes.txt', *map(os.path.basename, paths)]
    assert find_shards(root) == paths and survey(root).classes == data.classes
    samples = [sample for p in paths for sample in open_shard(p)]
    pixels = torch.stack([decode_sample(sample, 8, 'x') for sample in samples])
    assert torch.equal(pixels, data.pixels.expand(-1, 3, -1, -1))
    assert sum((count_shard(p).labels for p in paths), []) == data.labels.tolist()


@both
def test_from_any_sample_on(made, kind):
    path = find_shards(made / kind)[3]
    for first in (0, 1, 23, 24, 30):
        read = [number(decode_sample(sample, 4, 'x')[None])[0] for sample in open_shard(path, first)]
        assert read == list(range(72 + first, 96))


@both
def test_no_labels(tmp_path, kind):
    [path] = write_shards(coded(5, labels=0), tmp_path, format=kind)
    assert (count_shard(str(path)).n, count_shard(str(path)).labels) == (5, None)
    assert write_shards(coded(5).select([]), tmp_path / 'none', format=kind) == []


@both
def test_index(made, tmp_path, alone, kind, monkeypatch):  # noqa: F811
    "Only what is new or changed is counted: the rest is believed, here a mark that we put into the index"
    root, paths = copy(made, tmp_path / 'x', kind)
    found = survey(root)
    [index] = (alone / 'cache').glob('shards-*.json')
    assert sum(c.n for c in found.counts.values()) == 203 and str(index) in found.notes[0]

    def marked():
        known, _ = count_shards(root, [str(p) for p in paths])
        return [p for p in paths if known[str(p)].trouble == 'marked']

    def put(change):
        _, text = index.read_text().split('\n')
        text = change(text)
        index.write_text(f'{mark(str(root), text)}\n{text}')

    put(lambda text: text.replace('""]', '"marked"]'))
    assert marked() == paths
    os.utime(paths[2], (1, 1))
    assert marked() == paths[:2] + paths[3:]
    assert json.loads(index.read_text().split('\n')[1])[str(paths[2])][0][1] == 10**9
    monkeypatch.setenv('JEPA_LIT_CACHE', str(paths[0] / 'below'))
    assert 'cannot be written' in survey(root).notes[0]


@pytest.mark.parametrize(
    'names, gone',
    [
        (['a-0.tar', 'a-1.tar', 'a-3.tar'], ['a-2.tar']),
        (['a-00.tar', 'a-02.tar', 'b.tar'], ['a-01.tar']),
        (['a.tar', 'b.tar'], []),
        (['day-20240101.tar', 'day-20240301.tar'], []),
        (['a-00001-of-00002.tar', 'a-00002-of-00002.tar'], []),
        (['a-00000-of-00003.tar'], ['a-00001-of-00003.tar', 'a-00002-of-00003.tar']),
    ],
)
def test_gaps(names, gone):
    assert missing_shards(names) == gone


def test_shard_counted_before_is_gone(tmp_path):
    def n(folder, **options):
        return sum(count.n for count in survey(tmp_path / folder, **options).counts.values())

    write_shards(coded(60), tmp_path / 'x', 10)
    for p in sorted((tmp_path / 'x').glob('*.tar')):
        p.rename(p.with_name(p.name[:11] + '.tar'))
    assert n('x') == 60
    (tmp_path / 'x' / 'train-00005.tar').unlink()  # the last of a plain numbering: only the index knows
    one_line(lambda: n('x'), FileNotFoundError, 'train-00005.tar', '.json')
    assert n('x', missing='skip') == 50
    write_shards(coded(60), tmp_path / 'y', 10)
    assert n('y') == 60
    for p in (tmp_path / 'y').iterdir():
        p.unlink()
    write_shards(coded(60), tmp_path / 'y', 20)
    assert n('y') == 60  # written anew in fewer


def test_one_damaged_shard_does_not_cost_the_labels(made, tmp_path):
    root, paths = copy(made, tmp_path / 'x')
    content = paths[3].read_bytes()
    paths[3].write_bytes(content.replace(b'3', b'x', 1))  # no end to the number of its first sample
    paths[5].write_bytes(b'')
    found = survey(root)
    assert str(paths[5]) not in found.counts and paths[5].name in str(found.trouble)
    assert all(count.labels is not None for count in found.counts.values())


def test_wrong_root(tmp_path):
    one_line(lambda: find_shards(tmp_path / 'none'), FileNotFoundError, 'no such folder, file or pattern')
    one_line(lambda: find_shards(tmp_path / '*.tar'), ValueError, 'no shards among 0 files')
    (tmp_path / 'a.zip').touch()
    (tmp_path / '.b.tar').touch()
    one_line(lambda: find_shards(tmp_path), ValueError, 'no shards among 1 files')  # hidden ones are none


def test_bad_numbers(tmp_path):
    one_line(lambda: write_shards(coded(3), tmp_path / 'z', 0), ValueError, 'per_shard')
    one_line(lambda: write_shards(coded(3), tmp_path / 'z', 3, 'zip'), ValueError, "'zip'")
    assert not (tmp_path / 'z').exists()


def test_library_is_missing(made, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
    path = find_shards(made / 'parquet')[0]
    for call in (lambda: next(open_shard(path)), lambda: count_shard(path), lambda: survey(path)):
        one_line(call, ImportError, "pip install 'jepa_lit[scale]'")
    assert survey(made / 'tar').paths  # tar needs none

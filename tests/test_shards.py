"A stream from shards, read by any number of readers, from any step, with every fault we could think of"

import io, itertools, os, socket, sys, tarfile
from dataclasses import replace
import pytest, torch
from jepa_lit.archives import to_png, write_parquet, write_shards, write_tar
from jepa_lit.data import Images, generator
from jepa_lit.datasets import LOADERS, channel_statistics, load
from jepa_lit.files import Files, batches
from jepa_lit.shards import Shards, load_shards
from shard_checks import alone, coded, copy, ids, number, one_line, take  # noqa: F401

pytest.importorskip('pyarrow', reason='needs pyarrow, which is not installed')
slow = pytest.mark.slow
pytestmark = pytest.mark.usefixtures('unchecked')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "203 images in 9 shards, as tar and as parquet"
    root = tmp_path_factory.mktemp('shards')
    for f in ('tar', 'parquet'):
        write_shards(coded(203), root / f, 24, f)
    return root


def whole(made, kind='tar', **kw):
    paths = sorted(str(p) for p in (made / kind).glob(f'*.{kind}'))
    return Shards(paths, size=4, lengths=(24,) * 8 + (11,), **{'buffer': 40, 'lanes': 4, **kw})


# ---- reading


@pytest.mark.parametrize('kind', ['tar', 'parquet'])
def test_round_trip(tmp_path, kind):
    data = load('digits', size=8).test.select(range(50))
    paths = write_shards(data, tmp_path / 'a [b]*?', 20, kind)  # a folder with the letters of a pattern
    assert [p.name for p in paths] == [f'train-{i:05d}-of-00003.{kind}' for i in range(3)] and not list(
        tmp_path.rglob('*.part')
    )
    s = load_shards(tmp_path / 'a [b]*?', size=8)
    got = torch.cat([s.train.rows, s.test.rows])
    assert (
        sorted(got.tolist()) == list(range(50))
        and s.train.classes == data.classes
        and 'split 80/20' in str(s.notes)
    )
    for part in (s.train, s.test):
        pixels = torch.cat([x for x, _ in batches(part, range(len(part)))])
        assert torch.equal(pixels, data.pixels[part.rows].expand(-1, 3, -1, -1)) and torch.equal(
            part.labels, data.labels[part.rows]
        )


def test_is_a_files(made):
    s = whole(made)
    assert (
        isinstance(s, Files)
        and len(s) == 203
        and 'in 9 shards' in repr(s)
        and s.channels == 3
        and s.size == 4
    )
    for i in (5, 6, 30, 2, 202):
        assert number(s.read(i)[None]) == [i] and s.name(i).endswith(f'#{i % 24}')
    order = [100, 3, 3, 99, 201]
    for workers in (0, 2):
        assert number(torch.cat([x for x, _ in batches(s, order, 2, workers)])) == order
    part = s.select(torch.arange(203) % 3 == 1).select([5, 0])
    assert part.rows.tolist() == [16, 1] and number(part.read(0)[None]) == [16] and len(s.select([])) == 0


def test_leaves_nothing_and_calls_nobody(made, alone, monkeypatch):
    def refuse(*a, **k):
        raise AssertionError('a shard on disk needs no network')

    monkeypatch.setattr(socket, 'socket', refuse)
    monkeypatch.setattr(socket, 'create_connection', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    take(whole(made).stream(20), 3)
    take(whole(made, 'parquet').stream(20), 3)
    assert not (alone / '.cache').exists() and not (alone / 'cache').exists()


# ---- the order


@pytest.mark.parametrize(
    'buffer, lanes, batch',
    [(40, 4, 20), pytest.param(1, 1, 7, marks=slow), (1000, 16, 20), (13, 3, 64), (40, 5, 203)],
)
def test_epoch(made, buffer, lanes, batch):
    s = whole(made, buffer=buffer, lanes=lanes)
    n = 203 // batch
    two = ids(s.stream(batch, seed=1), 2 * n)
    for part in (two[:n], two[n:]):
        flat = sum(part, [])
        assert all(len(b) == batch for b in part) and len(set(flat)) == len(flat) == n * batch
    assert two[:n] != two[n:]
    assert ids(s.stream(batch, seed=2), n) != two[:n]


@pytest.mark.parametrize('kind', ['tar', 'parquet'])
def test_resume(made, kind):
    s, want = whole(made, kind), ids(whole(made).stream(20, seed=4), 23)
    for start in (1, 9, 10, 20):
        assert ids(s.stream(20, seed=4, start=start), 2) == want[start : start + 2], start
    assert ids(s.stream(20, seed=4, start=20 * 10**6), 1)  # two million epochs later, at once


@pytest.mark.parametrize(
    'workers', [1, 2, pytest.param(5, marks=pytest.mark.filterwarnings('ignore:This DataLoader'))]
)
def test_workers(made, workers):
    assert ids(whole(made).stream(20, 4, 3, workers), 12) == ids(whole(made).stream(20, 4, 3), 12)


@pytest.mark.parametrize(
    'ranks, workers, batch', [(2, 0, 20), (3, 1, 20), pytest.param(2, 2, 21, marks=slow), (7, 0, 7)]
)
def test_ranks(made, ranks, workers, batch):
    def rows(r):
        return lambda n: (n * r // ranks, n * (r + 1) // ranks)

    want = ids(whole(made).stream(batch, 4, 3), 4)
    parts = [ids(whole(made).stream(batch, 4, 3, workers, rows(r)), 4) for r in range(ranks)]
    assert [sum(p, []) for p in zip(*parts)] == want


def test_readers_share_the_shards(made, tmp_path):
    "Lanes that a rank does not need are not opened: it goes on where their shards are gone"
    _, paths = copy(made, tmp_path / 'x')
    s = replace(whole(made), paths=[str(p) for p in paths])

    def needed(steps, *options):
        found = set()
        for p in paths:
            hidden = p.rename(p.with_suffix('.hidden'))
            try:
                take(s.stream(20, 4, *options), steps)
            except FileNotFoundError:
                found.add(p.name)
            hidden.rename(p)
        return found

    seen = [needed(10, 0, 0, lambda n: (n * r // 2, n * (r + 1) // 2)) for r in range(2)]
    assert len(seen[0] & seen[1]) <= 1 and len(seen[0] | seen[1]) == 9
    assert len(needed(1, 9)) < 9  # a resume does not begin at the beginning


def test_select_streams_its_part(made):
    s = whole(made)
    some = torch.arange(203)[torch.arange(203) % 4 != 0]
    part = s.select(some[torch.randperm(len(some), generator=generator('t'))])
    want = ids(part.stream(20), 14)
    assert len(set(sum(want[:7], []))) == 140 and not any(i % 4 == 0 for i in sum(want, []))
    for start in (3, 8):
        assert ids(part.stream(20, start=start, workers=2), 2) == want[start : start + 2]


def test_order_is_pinned(made):
    "Another release must not change a run that is resumed with it"
    assert ids(whole(made).stream(8, 0), 1) == [[200, 198, 45, 43, 140, 142, 163, 0]]


def test_mixing(made):
    "Without a buffer a lane keeps its order, with a large one it does not"

    def steps_up(b):
        x = sum(ids(whole(made, buffer=b, lanes=1).stream(50), 4), [])
        return sum(b == a + 1 for a, b in zip(x, x[1:]))

    assert steps_up(1) > 180 and steps_up(203) < 20


# ---- faults


@pytest.mark.parametrize('kind', ['tar', 'parquet'])
@pytest.mark.parametrize(
    'spoil',
    [
        lambda b: b[: len(b) // 2],
        lambda b: b'',
        pytest.param(lambda b: b'junk' * 99, marks=slow),
        lambda b: b[:700] + bytes(600) + b[1300:],
        lambda b: b[:-4],
    ],
    ids=['half', 'empty', 'junk', 'hole', 'tail'],
)
def test_damaged_shard(made, tmp_path, kind, spoil):
    root, paths = copy(made, tmp_path / 'x', kind)
    paths[3].write_bytes(spoil(paths[3].read_bytes()))
    s = load_shards(root, size=4)
    t = replace(s.train, buffer=40, lanes=4)
    n = len(t) // 20
    want = ids(t.stream(20), n)
    assert all(len(b) == 20 for b in want) and len(s.train) + len(s.test) >= 179
    for start in (2, n - 1):
        assert ids(t.stream(20, 0, start, 2), 1) == want[start : start + 1]
    if len(s.train) + len(s.test) < 203:
        assert paths[3].name in str(s.train.skipped) and 'damaged shards' in str(s.notes)


@pytest.mark.parametrize('kind', ['tar', 'parquet'])
@pytest.mark.parametrize('buffer', [8, pytest.param(1000, marks=slow)])
def test_damaged_while_it_runs(made, tmp_path, kind, buffer):
    "Counted whole, then spoilt: every batch stays whole, and a resumed run sees the same replacements"
    root, paths = copy(made, tmp_path / 'x', kind)
    s = replace(whole(made, kind, buffer=buffer), paths=[str(p) for p in paths])
    paths[3].write_bytes(paths[3].read_bytes()[:1500])
    paths[5].write_bytes(b'')
    want = ids(s.stream(20), 20)
    assert (
        all(len(b) == 20 for b in want)
        and paths[3].name in str(s.skipped)
        and paths[5].name in str(s.skipped)
    )
    assert not set(sum(want, [])) & set(range(120, 144))
    for start in (6, 13):
        assert ids(s.stream(20, 0, start, start % 3), 2) == want[start : start + 2]

    def rows(r):
        return lambda n: (n * r // 3, n * (r + 1) // 3)

    assert [sum(p, []) for p in zip(*(ids(s.stream(20, 0, 4, 0, rows(r)), 3) for r in range(3)))] == want[4:7]


@pytest.mark.parametrize('kind', ['tar', 'parquet'])
def test_damaged_image(tmp_path, kind):
    root = tmp_path / 'x'
    root.mkdir()
    files = [b'not a picture' if i in (5, 17) else to_png(x) for i, x in enumerate(coded(60).pixels)]
    write = dict(tar=write_tar, parquet=write_parquet)[kind]
    for k in range(6):
        samples = [(i, files[i], None) for i in range(10 * k, 10 * k + 10)]
        write(root / f'train-{k:05d}-of-00006.{kind}', samples)
    s = load_shards(tmp_path / 'x', size=4)
    assert s.test is None and 'labels of at least two classes' in str(s.notes)
    want = ids(s.train.stream(20), 6)
    assert {len(set(sum(want[i : i + 3], []))) for i in (0, 3)} == {58} and {
        n.split('-of')[0] + n[-2:] for n in s.train.skipped
    } == {'train-00000#5', 'train-00001#7'}
    got = [i for _, i in batches(s.train, range(60), 20)]
    assert len(torch.cat(got)) == 58


def test_nothing_can_be_read(tmp_path):
    write_shards(coded(60), tmp_path / 'x', 10)
    s = load_shards(tmp_path / 'x').train
    for p in (tmp_path / 'x').glob('*.tar'):
        p.write_bytes(b'')
    for workers in (0, 2):
        one_line(
            lambda: next(s.stream(20, workers=workers)),
            ValueError,
            'none of 50 images in 6 shards can be read',
        )
    one_line(lambda: s.sample, ValueError, 'can be read')
    one_line(lambda: load_shards(tmp_path / 'x'), ValueError, '0 images in 6 shards, at least 2')


def test_missing_shard(made, tmp_path, monkeypatch):
    root, paths = copy(made, tmp_path / 'x')
    paths[4].unlink()
    for call in (lambda: load_shards(root), lambda: load('shards', root)):
        one_line(call, FileNotFoundError, '1 shards are missing', paths[4].name, 'skip')
    s = load_shards(root, missing='skip')
    assert len(s.train) + len(s.test) == 179 and paths[4].name in str(s.notes)
    monkeypatch.setenv('JEPA_LIT_MISSING', 'skip')
    assert len(load('shards', root).train) == len(s.train)
    monkeypatch.setenv('JEPA_LIT_MISSING', 'perhaps')
    one_line(lambda: load('shards', root), ValueError, 'error, skip', 'perhaps')


@pytest.mark.parametrize('workers', [0, 2])
def test_vanishes_while_it_runs(made, tmp_path, workers):
    root, paths = copy(made, tmp_path / 'x')
    s = replace(whole(made), paths=[str(p) for p in paths])
    paths[6].unlink()
    one_line(lambda: take(s.stream(20, workers=workers), 12), FileNotFoundError, paths[6].name, 'is gone')
    s = replace(s, missing='skip', skipped=[])
    want = ids(s.stream(20, workers=workers), 12)
    assert paths[6].name in str(s.skipped) and ids(s.stream(20, start=7), 2) == want[7:9]


def test_wrong_root(tmp_path):
    one_line(lambda: load('shards'), ValueError, 'needs root')
    one_line(lambda: load('shards', tmp_path / 'none'), FileNotFoundError, 'no such folder, file or pattern')
    one_line(lambda: load('shards', tmp_path / '*.tar'), ValueError, 'no shards among 0 files')
    (tmp_path / 'a.zip').touch()
    one_line(lambda: load('shards', tmp_path), ValueError, 'no shards among 1 files')
    one_line(lambda: load('shards', tmp_path, size=0), ValueError, 'size')


def test_bad_numbers(made):
    for kw in (dict(buffer=0), dict(lanes=0), dict(missing='maybe')):
        one_line(lambda: whole(made, **kw), ValueError, 'error, skip' if 'missing' in kw else 'at least 1')
    one_line(lambda: replace(whole(made), lengths=(1,)), ValueError, '1 lengths for 9 shards')
    s = whole(made)
    one_line(lambda: next(s.stream(204)), ValueError, 'a batch of 204 is larger than the data, 203 images')
    one_line(lambda: next(s.stream(0)), ValueError, 'got 0 and 0')
    one_line(lambda: next(s.stream(4, start=-1)), ValueError, 'got 4 and -1')
    one_line(lambda: next(s.stream(4, rows=lambda n: (2, 6))), ValueError, 'got 2 and 6')


def test_library_is_missing(made, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
    for workers in (0, 1):
        one_line(
            lambda: next(whole(made, 'parquet').stream(20, workers=workers)),
            ImportError,
            "pip install 'jepa_lit[scale]'",
        )
    one_line(lambda: whole(made, 'parquet').read(0), ImportError, 'jepa_lit[scale]')


def test_load_without_this_chapter(monkeypatch):
    monkeypatch.delitem(LOADERS, 'shards')
    one_line(lambda: load('shards', '.'), ValueError, 'import jepa_lit.shards first')


def test_labels_that_are_no_numbers(tmp_path):
    with tarfile.open(tmp_path / 'a.tar', 'w') as t:
        for i in range(4):
            for ending, b in (('png', to_png(coded(4).pixels[i])), ('cls', b'cat')):
                m = tarfile.TarInfo(f'{i}.{ending}')
                m.size = len(b)
                t.addfile(m, io.BytesIO(b))
    found = load_shards(tmp_path, size=4)
    assert found.train.labels is None and len(next(found.train.stream(4))) == 4
    assert "a.tar: 4 of its labels are no class numbers ('cat')" in str(found.notes)


def test_other_layouts(tmp_path):
    "Folders in a tar, hidden files, text beside the image; a table with plain bytes"
    import pyarrow as pa, pyarrow.parquet as pq

    png = [to_png(x) for x in coded(6).pixels]
    with tarfile.open(tmp_path / 'a.tar', 'w') as t:
        for name, b in [
            ('x', b''),
            ('._0.png', b'x'),
            *((f'd.1/{i}.{e}', b) for i in range(3) for e, b in (('txt', b'a text'), ('PNG', png[i]))),
        ]:
            m = tarfile.TarInfo(name)
            m.size = len(b)
            t.addfile(m, io.BytesIO(b))
    pq.write_table(pa.table(dict(id=[3, 4, 5], picture=png[3:])), tmp_path / 'b.parquet')
    s = load_shards(tmp_path, size=4).train
    assert s.lengths == (3, 3) and sorted(number(next(s.stream(6)))) == list(range(6))
    assert s.skipped == ['a.tar: 1 files without an image (x) (3 images can be read)']


# ---- in use


def test_parts(tmp_path):
    d = coded(90)
    write_shards(d.select(range(50)), tmp_path / 'x', 10)
    write_shards(d.select(range(50, 70)), tmp_path / 'x', 10, prefix='val')
    write_shards(d.select(range(70, 90)), tmp_path / 'x', 10, prefix='test')
    s = load_shards(tmp_path / 'x', size=4)
    assert (
        (len(s.train), len(s.test)) == (50, 20)
        and number(s.test.read(0)[None]) == [70]
        and 'not used: val' in str(s.notes)
    )
    s = load_shards(str(tmp_path / 'x' / 'train-*.tar'), size=4)
    assert (len(s.train), len(s.test)) == (40, 10)
    assert len(load_shards(tmp_path / 'x' / 'train-00001-of-00005.tar').train) == 5


def test_statistics(made):
    s = load_shards(made / 'tar', size=4).train
    assert isinstance(s.sample, Images) and len(s.sample) == len(s) and s.sample is s.sample
    mean, std = channel_statistics(s)
    want = coded(203).pixels[s.rows].double().div(255).mean((0, 2, 3))
    assert torch.allclose(mean.double(), want, atol=1e-6) and std[2] == pytest.approx(1 / 255)


@pytest.mark.parametrize('workers', [0, pytest.param(1, marks=slow)])
def test_fit(tmp_path, workers):
    "Training on shards: interrupted and resumed, the weights are the same bit for bit"
    from jepa_lit.callbacks import Checkpoint, MetricsLogger, TimeLimit
    from jepa_lit.checkpoints import Checkpoints
    from jepa_lit.training import fit, stream
    from small import adamw, equal, fresh

    write_shards(load('digits').train.select(range(120)), tmp_path / 'x', 20)
    data, lines = load('shards', tmp_path / 'x', size=32).train, []

    def train(method, *callbacks):
        return fit(method, stream(data, 32, workers=workers), adamw(method), 5, callbacks)

    whole = fresh('color')
    train(whole)
    for limit in ([TimeLimit(0.0)], [TimeLimit(0.0)], []):
        part = fresh('color')
        kept = Checkpoint(Checkpoints(tmp_path / 'run'), 3)
        state = train(part, kept, MetricsLogger(lines.append), *limit)
    assert state.status == 'done' and [line['step'] for line in lines] == list(range(5))
    equal(whole, part)

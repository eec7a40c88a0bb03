"Odd, hostile and damaged shards: every image is read, or what is lost is said in one line, in time and in memory"

import gzip, io, itertools, os, random, shutil, tarfile
import numpy as np
import pytest, torch
from PIL import Image
from jepa_lit.archives import count_shard, mark, missing_shards, survey, write_shards
from jepa_lit.data import Images
from jepa_lit.datasets import load
from jepa_lit.shards import load_shards
from jepa_lit.archives import to_png
from shard_checks import alone, coded, number, one_line  # noqa: F401

pytest.importorskip('pyarrow', reason='needs pyarrow, which is not installed')
import pyarrow as pa
import pyarrow.parquet as pq

pytestmark = pytest.mark.usefixtures('unchecked')
PNG = [to_png(x) for x in coded(40).pixels]


def header(name, size, kind=tarfile.REGTYPE, link=''):
    made = tarfile.TarInfo(name)
    made.size, made.type, made.linkname = size, kind, link
    return made


def tar(path, files):
    "An archive of (name, content), or of bare headers"
    with tarfile.open(path, 'w') as archive:
        for file in files:
            if isinstance(file, tarfile.TarInfo):
                archive.addfile(file)
            else:
                archive.addfile(header(file[0], len(file[1])), io.BytesIO(file[1]))


def raw(path, *parts):
    "An archive of headers that nobody checked"
    blocks = [part.tobuf(tarfile.GNU_FORMAT) if isinstance(part, tarfile.TarInfo) else part for part in parts]
    path.write_bytes(b''.join(block + bytes(-len(block) % 512) for block in blocks) + bytes(1024))


def samples(n=20, label=lambda i: b'%d' % (i % 5), name='{:03d}'):
    return [(name.format(i) + e, b) for i in range(n) for e, b in (('.png', PNG[i]), ('.cls', label(i)))]


def jpeg(i):
    out = io.BytesIO()
    Image.fromarray(coded(40).pixels[i].permute(1, 2, 0).numpy()).save(out, 'JPEG', quality=100)
    return out.getvalue()


def deep(values):
    "A 16-bit gray image"
    out = io.BytesIO()
    Image.fromarray(values.astype(np.uint16)).save(out, 'PNG')
    return out.getvalue()


def outcome(root, **options):
    "Numbers of the images that can be read, and all that is said; a stream is whole, or one line"
    try:
        found = load_shards(root, size=4, missing='skip', **options)
    except (ValueError, OSError) as e:
        assert '\n' not in str(e)
        return [], str(e)
    seen, said = [], list(found.notes)
    for part in filter(None, (found.train, found.test)):
        for i in range(len(part)):
            try:
                seen += number(part.read(i)[None])
            except ValueError as e:
                assert '\n' not in str(e)
                said.append(str(e))
    try:
        for batch in itertools.islice(found.train.stream(4), len(found.train) // 4):
            assert batch.shape == (4, 3, 4, 4)
    except ValueError as e:
        assert '\n' not in str(e)
        said.append(str(e))
    return sorted(seen), ' '.join([*said, *found.train.skipped])


# ---- tar

BOMB = gzip.compress(bytes(10**7))
PAX = b'13 comment=a\n'
TARS = dict(
    mixed_formats=([(f'{i}.JPG', jpeg(i)) if i % 2 else (f'{i}.png', PNG[i]) for i in range(20)], 20, ''),
    label_without_image=(samples() + [('x.cls', b'1')], 20, '1 files without an image (x.cls)'),
    label_missing=(samples()[:-1], 20, '1 of its labels are no class numbers (None)'),
    labels_behind=(samples()[::2] + samples()[1::2], 20, '20 files without an image'),
    text_and_hidden=(
        [('README', b'x'), ('._0.png', b'x'), ('a/', b''), *samples()],
        20,
        '1 files without an image (README)',
    ),
    compressed=([('z.png.gz', BOMB), *samples(), ('z.npy.gz', BOMB)], 20, 'z.png.gz'),
    mask_first=(
        [(f'{i}{e}', b) for i in range(20) for e, b in (('.mask.png', PNG[39]), ('.png', PNG[i]))],
        20,
        '(0.mask.png, 1.mask.png, ...)',
    ),
    twice=([x for i in range(20) for x in [(f'{i}.png', PNG[i])] * 2], 20, '20 images behind another'),
    no_files=(
        samples()
        + [header('l.png', 0, tarfile.SYMTYPE, '/etc/passwd'), header('h.png', 0, tarfile.LNKTYPE, '000.png')]
        + [header(f'{k}.png', 0, k.encode()) for k in '346'],
        20,
        '5 files without an image (l.png, h.png, ...)',
    ),
    outside=(samples(name='/etc/../../{}'), 20, ''),
    names=(
        [(f'{n}{i}.png', PNG[i]) for i, n in enumerate(['ü', '\u202e', '$x$', '<b>', 'a\nb', 'x' * 300])],
        6,
        '',
    ),
    postscript=(
        samples() + [('ps.png', b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage')],
        20,
        '#20',
    ),
    bomb=(samples() + [('b.png', deep(np.zeros((15000, 15000))))], 20, '#20'),
    empty=([], 0, '0 images in 1 shards'),
)


@pytest.mark.parametrize('name', TARS)
def test_odd_tar(tmp_path, name):
    files, n, text = TARS[name]
    tar(tmp_path / 'a.tar', files)
    seen, said = outcome(tmp_path)
    assert len(seen) == n and text in said, said


@pytest.mark.parametrize(
    'parts',
    [
        [header('a.png', -512)],
        [header('a.png', 2**50), bytes(512)],
        [header('x', 300_000, b'x'), b'1' * 300_000, header('a.png', 3), b'abc'],
        [header('x', 300_000, b'L'), b'n' * 300_000, header('a.png', 3), b'abc'],
        [header('x', 13, b'x'), b'13 size=-512\n', header('a.png', 512), bytes(512)],
        [header('x', 21, b'x'), b'21 size=999999999999\n', header('a.png', 512), bytes(512)],
        [header('x', len(PAX), b'x'), PAX] * 3000 + [header('a.png', 0)],
        [b'PK\3\4' + bytes(508)],
        [b'PAR1' + bytes(2000) + b'PAR1'],
    ],
    ids='negative huge comment longname back far deep zip parquet'.split(),
)
def test_hostile_headers(tmp_path, parts):
    raw(tmp_path / 'a.tar', *parts)
    seen, said = outcome(tmp_path)
    assert not seen and 'at least 2 are needed' in said


def test_names_with_dots(tmp_path, monkeypatch):
    "36 images of three days: cut at the first dot they are three samples, which is said; at the last, all"
    names = [f'IMG_2024.0{d}.00.{i:04d}' for d in (1, 2, 3) for i in range(12)]
    names = [name.replace('2024', str(2024 + i // 12)) for i, name in enumerate(names)]
    tar(
        tmp_path / 'a.tar',
        [x for name, png in zip(names, PNG) for x in ((name + '.png', png), (name + '.cls', b'1'))],
    )
    seen, said = outcome(tmp_path)
    assert (
        len(seen) == 3
        and '33 images behind another in one sample, named to its first dot (JEPA_LIT_DOT: first or last)'
        in said
    )
    assert outcome(tmp_path, dot='last')[0] == list(range(36))
    monkeypatch.setenv('JEPA_LIT_DOT', 'last')
    both = load('shards', tmp_path, size=4)
    assert (
        len(both.train) == 36 and both.train.labels.tolist() == [1] * 36 and 'behind' not in str(both.notes)
    )
    monkeypatch.setenv('JEPA_LIT_DOT', 'middle')
    one_line(lambda: load('shards', tmp_path), ValueError, "'middle'", 'first, last')


@pytest.mark.parametrize('kind', ['tar', 'parquet'])
@pytest.mark.parametrize(
    'labels',
    [
        [2 * 10**9] * 20,
        [-3] * 20,
        [2**63] * 20,
        ['cat'] * 20,
        [1.5] * 20,
        [float('nan')] * 20,
        [1] * 19 + [-1],
    ],
    ids=str,
)
def test_labels_that_no_class_has(tmp_path, kind, labels):
    if kind == 'tar':
        tar(tmp_path / 'a.tar', samples(label=lambda i: str(labels[i]).encode()))
    else:
        column = pa.array(labels, pa.uint64() if labels[0] == 2**63 else None)
        pq.write_table(pa.table(dict(image=PNG[:20], label=column)), tmp_path / 'a.parquet')
    seen, said = outcome(tmp_path)
    assert len(seen) == 20 and 'of its labels are no class numbers' in said and 'no test part' in said


@pytest.mark.parametrize('labels', [[-1] * 20, [None] * 20])
def test_no_labels_are_nothing_to_speak_of(tmp_path, labels):
    pq.write_table(pa.table(dict(image=PNG[:20], label=pa.array(labels, pa.int64()))), tmp_path / 'a.parquet')
    seen, said = outcome(tmp_path)
    assert len(seen) == 20 and 'class numbers' not in said


def test_names_of_classes(tmp_path):
    tar(tmp_path / 'a.tar', samples())
    names = tmp_path / 'classes.txt'
    names.write_text('a\nb\n')
    assert "labels in 0..1 (a, b) expected" in outcome(tmp_path)[1]
    names.write_bytes('\ufeffä\r\nb\x85\u2028x\r\nc\r\nd\r\ne\r\n'.encode())
    assert load_shards(tmp_path).train.classes == ('ä', 'b\x85\u2028x', 'c', 'd', 'e')
    names.unlink()
    os.mkfifo(names)
    assert 'a plain file is expected' in outcome(tmp_path)[1]
    odd = Images(coded(4).pixels, torch.arange(4), ('a\nb', 'ü', '\udcff', '\u2028'))
    write_shards(odd, tmp_path / 'x')
    assert load_shards(tmp_path / 'x').train.classes == ('a\\nb', 'ü', '\\udcff', '\\u2028')


# ---- parquet


def struct(files):
    return [dict(bytes=file, path='x') for file in files]


TABLES = dict(
    mask_first=(lambda: dict(mask=struct([PNG[39]] * 20), image=struct(PNG[:20])), 20, 'not read (mask)'),
    plain=(lambda: dict(id=list(range(20)), picture=PNG[:20]), 20, ''),
    large=(lambda: dict(picture=pa.array(PNG[:20], pa.large_binary())), 20, ''),
    dictionary=(lambda: dict(picture=pa.array(PNG[:20]).dictionary_encode()), 20, ''),
    dotted=(lambda: {'a.b': struct(PNG[:20]), 'image.bytes': list(range(20))}, 20, ''),
    some_null=(lambda: dict(image=[PNG[i] if i % 2 else None for i in range(20)]), 10, '#2'),
    paths=(lambda: dict(image=[dict(bytes=b'', path='/etc/passwd')] * 20), 0, 'none of 20 images'),
    strings=(lambda: dict(image=['x.png'] * 20), 0, 'no column of image files among image'),
    lists=(lambda: dict(image=[struct(PNG[:2])] * 20), 0, 'no column of image files'),
    nothing=(lambda: {}, 0, 'no column of image files'),
    bomb=(lambda: dict(image=[bytes(400_000_000), *PNG[:19]]), 0, 'in a file of'),
)


@pytest.mark.parametrize('name', TABLES)
def test_odd_table(tmp_path, name):
    columns, n, text = TABLES[name]
    pq.write_table(pa.table(columns()), tmp_path / 'a.parquet', compression='zstd', row_group_size=7)
    seen, said = outcome(tmp_path)
    assert len(seen) == n and text in said, said


# ---- folders


def test_what_is_called_a_shard_is_read_or_said(tmp_path):
    tar(tmp_path / 'A.TAR', samples())
    packed = gzip.compress((tmp_path / 'A.TAR').read_bytes())
    for name in ('b.tar.gz', 'c.tgz', 'd.parquet'):
        (tmp_path / name).write_bytes(packed)
    os.mkfifo(tmp_path / 'e.tar')
    (tmp_path / 'f.tar').symlink_to('/nowhere')
    (tmp_path / 'g.tar').symlink_to('/dev/zero')
    (tmp_path / 'loop').symlink_to(tmp_path)
    seen, said = outcome(tmp_path)
    assert len(seen) == 20 and '6 odd or damaged shards' in said
    assert all(f'{name}: ' in said for name in ('b.tar.gz', 'c.tgz', 'd.parquet', 'e.tar', 'f.tar', 'g.tar'))


def test_a_linked_folder_is_searched(tmp_path):
    (tmp_path / 'far').mkdir()
    tar(tmp_path / 'far' / 'a.tar', samples())
    (tmp_path / 'x').mkdir()
    (tmp_path / 'x' / 'link').symlink_to(tmp_path / 'far')
    assert len(outcome(tmp_path / 'x')[0]) == 20


@pytest.mark.parametrize(
    'train, test',
    [
        ('imagenet1k-train-0000.tar', 'imagenet1k-validation-00.tar'),
        ('TRAIN/0.tar', 'VAL/0.tar'),
        ('training/0.tar', 'Testing/0.tar'),
        ('cifar10_train.tar', 'cifar10_test.tar'),
        ('a-000.tar', 'test/a-000.tar'),
    ],
)
def test_parts_in_any_spelling(tmp_path, train, test):
    for name in (train, test):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        tar(tmp_path / name, samples())
    found = load_shards(tmp_path, size=4)
    assert [os.path.basename(p) for p in found.test.paths] == [os.path.basename(test)]
    assert len(found.train) == len(found.test) == 20 and '1 held out' in str(found.notes)


def test_numbers_without_end():
    assert missing_shards(['a-00000-of-99999999999999.tar']) == []
    assert (
        missing_shards(['a-0.tar', 'a-' + '9' * 200 + '.tar', 'a-1700000000.tar', 'a-1800000000.tar']) == []
    )


def test_two_numberings_in_one_folder(tmp_path):
    write_shards(coded(40), tmp_path, 20)
    write_shards(coded(40), tmp_path, 20)  # the same again
    one_line(lambda: write_shards(coded(40), tmp_path, 10), ValueError, 'train-00000-of-00002.tar')
    one_line(lambda: write_shards(coded(40), tmp_path, 20, 'parquet'), ValueError, 'other shards')
    write_shards(coded(10), tmp_path, 10, prefix='test')
    assert sum(count.n for count in survey(tmp_path).counts.values()) == 50


# ---- damage


@pytest.mark.parametrize('kind', ['tar', 'parquet'])
@pytest.mark.parametrize('how', ['flip', 'cut', 'insert', 'zeros'])
@pytest.mark.parametrize('times', [8, pytest.param(300, marks=pytest.mark.slow)])
def test_damage_is_said_or_harmless(tmp_path, kind, how, times):
    rng = random.Random(f'{kind} {how} {times}')
    path, _ = write_shards(coded(40), tmp_path, 20, kind)
    whole = path.read_bytes()
    clean = outcome(tmp_path)
    for _ in range(times):
        content = bytearray(whole)
        at = rng.randrange(len(content))
        if how == 'flip':
            content[at] ^= 1 << rng.randrange(8)
        elif how == 'cut':
            del content[at:]
        elif how == 'insert':
            content[at:at] = rng.randbytes(rng.choice([1, 7, 512]))
        else:
            content[at : at + 600] = bytes(len(content[at : at + 600]))
        path.write_bytes(content)
        seen, said = outcome(tmp_path)
        assert seen == clean[0] or 'skipped' in said or '#' in said, at


@pytest.fixture
def indexed(tmp_path, alone):  # noqa: F811
    "A folder that was counted, and its index"
    root = tmp_path / 'x'
    write_shards(coded(40), root, 20)
    survey(root)
    [index] = (alone / 'cache').glob('shards-*.json')
    return root, index


def test_a_damaged_index_is_made_again(indexed):
    root, index = indexed
    whole = index.read_bytes()
    for at in range(0, len(whole), 11):
        content = bytearray(whole)
        content[at] ^= 1 << at % 8
        index.write_bytes(content)
        found = survey(root)
        assert [count.labels for count in found.counts.values()] == [[i % 5 for i in range(20)]] * 2
        assert 'damaged, made again' in found.notes[0] and index.read_bytes() == whole
    for content in (b'', b'[', b'[' * 10**5, whole[:-1], whole * 2, b'\xff' * 99, b'{}\n{}'):
        index.write_bytes(content)
        assert 'damaged, made again' in survey(root).notes[0] and index.read_bytes() == whole
    assert 'made again' not in survey(root).notes[0]


def test_an_index_of_another_folder_is_not_believed(indexed, tmp_path, alone):  # noqa: F811
    root, index = indexed
    other = tmp_path / 'y'
    write_shards(coded(60), other, 30)
    survey(other)
    [theirs] = set((alone / 'cache').glob('shards-*.json')) - {index}
    theirs.write_bytes(index.read_bytes())
    assert 'damaged, made again' in survey(other).notes[0]


def test_an_index_that_is_no_plain_file(indexed):
    root, index = indexed
    for make in (os.mkfifo, os.mkdir, lambda path: os.symlink('/dev/zero', path)):
        index.unlink() if not index.is_dir() else index.rmdir()
        make(index)
        assert sum(count.n for count in survey(root).counts.values()) == 40


# ---- identity


def test_fingerprint(tmp_path):
    "The same wherever the folder lies; other shards, another order or another size are other data"
    write_shards(coded(40), tmp_path / 'a', 10)
    shutil.copytree(tmp_path / 'a', tmp_path / 'b')
    one, two = (load_shards(tmp_path / name, size=4) for name in 'ab')
    assert one.train.fingerprint() == two.train.fingerprint() != one.test.fingerprint()
    for path in (tmp_path / 'b').iterdir():
        os.utime(path, (1, 1))
    (tmp_path / 'b').rename(tmp_path / 'c')
    known = {one.train.fingerprint()}
    assert load_shards(tmp_path / 'c', size=4).train.fingerprint() in known
    for options in (dict(size=8), dict(split_seed=1), dict(buffer=7), dict(lanes=2), dict(dot='last')):
        known.add(load_shards(tmp_path / 'a', **{'size': 4, **options}).train.fingerprint())
    with open(tmp_path / 'c' / 'train-00003-of-00004.tar', 'ab') as file:
        file.write(bytes(512))
    known.add(load_shards(tmp_path / 'c', size=4).train.fingerprint())
    (tmp_path / 'c' / 'train-00001-of-00004.tar').unlink()
    known.add(load_shards(tmp_path / 'c', size=4, missing='skip').train.fingerprint())
    assert len(known) == 8


@pytest.mark.parametrize('kind', ['tar', 'parquet'])
def test_deep_images_share_one_scale(tmp_path, kind):
    "12 bits in 16: all 256 levels, and black and white are those of the set, not of an image"
    ramp = np.linspace(0, 4095, 64 * 64).reshape(64, 64)
    files = [deep(ramp), deep(ramp / 2), deep(ramp / 4), deep(ramp)]
    if kind == 'tar':
        tar(tmp_path / 'a.tar', [(f'{i}.png', file) for i, file in enumerate(files)])
    else:
        pq.write_table(pa.table(dict(image=files)), tmp_path / 'a.parquet')
    found = load('shards', tmp_path, size=64)
    assert found.levels == (0, 4095) and 'more than 8 bits: 0 is black and 4095 white' in str(found.notes)
    pixels = [found.train.read(i) for i in range(4)]
    assert len(pixels[0].unique()) > 200 and [int(x.max()) for x in pixels] == [255, 127, 64, 255]
    again = load('shards', tmp_path, size=64, levels=(0.0, 8190.0))
    assert again.levels == (0, 8190) and int(next(again.train.stream(4)).max()) == 128


def test_reading_goes_on_in_a_shard_that_was_written_anew(tmp_path):
    "No reader of the old file is kept"
    write_shards(coded(20), tmp_path, 20)
    before = load_shards(tmp_path, size=4).train
    before.read(0)
    write_shards(Images(coded(20).pixels.flip(0)), tmp_path, 20)
    after = load_shards(tmp_path, size=4).train
    assert number(after.read(1)[None]) == [18]


def test_a_count_says_what_it_left_out(tmp_path):
    tar(tmp_path / 'a.tar', samples() + [('note.txt', b'')])
    count = count_shard(str(tmp_path / 'a.tar'))
    assert (
        count.n == 20
        and count.trouble == 'a.tar: 1 files without an image (note.txt) (20 images can be read)'
    )
    assert len(mark('a', 1)) == 16 and mark('a', 1) != mark('a', '1')

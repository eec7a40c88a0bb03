"Images of every kind and shape, whole and broken, in memory and on disk"

import io, os, struct, time, zlib
from concurrent.futures import ThreadPoolExecutor
import jaxtyping, numpy as np, pytest, torch
from PIL import Image
from jepa_lit import files
from jepa_lit.data import Images
from jepa_lit.files import Files, batches, decode, find_images, find_levels, read_image, to_rgb


def picture(path, color=(200, 30, 60), size=(20, 16), **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, color).save(path, **kw)
    return path


def tree(root, *names):
    for i, n in enumerate(names):
        picture(root / n, (10 * i % 256, 50, 90))
    return root


def one_line(call, kind, *parts):
    jaxtyping.config.update('jaxtyping_disable', True)  # our own errors, not the checker's
    try:
        with pytest.raises(kind) as e:
            call()
    finally:
        jaxtyping.config.update('jaxtyping_disable', False)
    text = str(e.value)
    assert '\n' not in text and text, text
    for p in parts:
        assert p in text, text
    return text


def test_batches_in_memory():
    im = Images(torch.randint(0, 256, (10, 1, 4, 4), dtype=torch.uint8))
    got = list(batches(im, [3, 1, 2, 9, 0], batch=2))
    assert [len(i) for _, i in got] == [2, 2, 1]
    assert torch.equal(torch.cat([x for x, _ in got]), im.pixels[[3, 1, 2, 9, 0]])
    assert list(batches(im, [])) == []
    one_line(lambda: next(batches(im, [0], batch=0)), ValueError, 'batch')


@pytest.mark.parametrize('workers', [0, 2])
def test_batches_from_disk(tmp_path, workers):
    tree(tmp_path, *(f'{i}.png' for i in range(7)))
    (tmp_path / '3.png').write_bytes(b'')
    f = Files(sorted(map(str, tmp_path.glob('*.png'))), names=tuple(f'{i}.png' for i in range(7)), size=8)
    before = torch.get_rng_state()
    for _ in range(2):
        got = list(batches(f, range(7), batch=3, workers=workers))
    assert torch.equal(before, torch.get_rng_state())
    assert [i.tolist() for _, i in got] == [[0, 1, 2], [4, 5], [6]]
    assert f.skipped == ['3.png'] and '1 skipped' in repr(f)
    assert all(torch.equal(x, f.read(int(i))) for xs, index in got for x, i in zip(xs, index))
    one_line(lambda: list(batches(f.select([3]), [0])), ValueError, 'none of 1', '3.png')
    assert f.select([3, 4]).skipped is f.skipped


def test_exif_orientation(tmp_path):
    x = np.zeros((40, 60, 3), np.uint8)
    x[:, :30] = 255  # white on the left, black on the right
    back = {
        2: 'FLIP_LEFT_RIGHT',
        3: 'ROTATE_180',
        4: 'FLIP_TOP_BOTTOM',
        5: 'TRANSPOSE',
        6: 'ROTATE_90',
        7: 'TRANSVERSE',
        8: 'ROTATE_270',
    }
    for tag, undo in back.items():
        exif = Image.Exif()
        exif[0x0112] = tag
        Image.fromarray(x).transpose(getattr(Image.Transpose, undo)).save(
            tmp_path / 'a.jpg', exif=exif, quality=95
        )
        got = read_image(tmp_path / 'a.jpg', 16).float()
        assert got[:, :, :6].min() > 240 and got[:, :, 10:].max() < 15, tag


@pytest.mark.parametrize('ending', ['png', 'tif', 'pgm'])
def test_sixteen_bits(tmp_path, ending):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    if ending == 'pgm':
        (tmp_path / 'a.pgm').write_bytes(
            b'P5 64 64 65535\n' + ramp.astype('>u2').tobytes()
        )  # older Pillow reads, but does not write it
    else:
        Image.fromarray(ramp).save(tmp_path / f'a.{ending}')
    got = read_image(tmp_path / f'a.{ending}', 64)
    assert (got[0].float() - torch.from_numpy(ramp / 257)).abs().max() <= 1 and torch.equal(got[0], got[1])


@pytest.mark.parametrize(
    'values, low, high',
    [
        (np.linspace(0, 1, 64, dtype=np.float32), 0, 255),
        (np.linspace(0, 255, 64, dtype=np.float32), 0, 255),
        (np.linspace(0, 0.5, 64, dtype=np.float32), 0, 128),
        (np.linspace(-3, 9, 64, dtype=np.float32), 0, 255),
        (np.linspace(0, 65535, 64).astype(np.int32), 0, 255),
        (np.linspace(0, 2**30, 64).astype(np.int32), 0, 255),
        (np.full(64, np.nan, np.float32), 0, 0),
        (np.full(64, -5, np.int32), 0, 0),
    ],
)
def test_wide_numbers(tmp_path, values, low, high):
    Image.fromarray(values.reshape(8, 8)).save(tmp_path / 'a.tif')
    got = read_image(tmp_path / 'a.tif', 8)
    assert abs(int(got.min()) - low) <= 1 and abs(int(got.max()) - high) <= 1


@pytest.mark.parametrize(
    'mode, color, expected',
    [
        ('1', 1, (255,) * 3),
        ('L', 90, (90,) * 3),
        ('P', 0, None),
        ('RGBA', (9, 9, 9, 0), (255,) * 3),
        ('LA', (0, 0), (255,) * 3),
        ('RGBA', (0, 0, 0, 128), (127,) * 3),
        ('CMYK', (0, 255, 255, 0), (255, 0, 0)),
        ('YCbCr', (128, 128, 128), (128,) * 3),
        ('RGBa', (0, 0, 0, 0), (255,) * 3),
        ('HSV', (0, 255, 255), (255, 0, 0)),
    ],
)
def test_modes(mode, color, expected):
    got = to_rgb(Image.new(mode, (3, 2), color))
    assert (
        got.mode == 'RGB'
        and got.size == (3, 2)
        and (expected is None or max(abs(a - b) for a, b in zip(got.getpixel((0, 0)), expected)) <= 1)
    )


@pytest.mark.parametrize('mode', ['P', 'L', 'RGB'])
def test_transparent_color(tmp_path, mode):
    "PNG and GIF may declare one color transparent instead of carrying an alpha channel"
    im = Image.new(mode, (4, 4), 0)
    im.save(tmp_path / 'a.png', transparency=(0, 0, 0) if mode == 'RGB' else 0)
    assert (read_image(tmp_path / 'a.png', 4) == 255).all()


@pytest.mark.parametrize('size', [(1, 1), (1, 300), (300, 1), (7, 5), (640, 427), (5000, 3000)])
@pytest.mark.parametrize('ending', ['png', 'jpg'])
def test_any_shape(tmp_path, size, ending):
    got = read_image(picture(tmp_path / f'a.{ending}', size=size), 32)
    assert (
        got.shape == (3, 32, 32)
        and got.is_contiguous()
        and (got.float() - torch.tensor([200.0, 30, 60])[:, None, None]).abs().max() < 4
    )


def test_center_crop(tmp_path):
    x = np.zeros((30, 90, 3), np.uint8)
    x[:, 30:60] = 255
    Image.fromarray(x).save(tmp_path / 'a.png')
    assert read_image(tmp_path / 'a.png', 30).min() == 255


def test_antialiased(tmp_path):
    stripes = np.zeros((256, 256), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / 'a.png')
    assert (read_image(tmp_path / 'a.png', 16).float() - 127.5).abs().max() < 3


def test_files_refuse_foreign_labels():
    one_line(lambda: Files(['a.png'], [0]), ValueError, 'int64', 'list')


def test_fingerprint_of_files(tmp_path):
    "A moved folder is the same data; another name, length, order or size is not"
    names = ('1.png', '2.png')

    def seen(folder, names=names, **options):
        paths = [str(folder / name) for name in names]
        return Files(paths, names=names, **options).fingerprint()

    first = seen(tree(tmp_path / 'a', *names))
    (tmp_path / 'a').rename(tmp_path / 'b')
    assert seen(tmp_path / 'b') == first
    others = {first, seen(tmp_path / 'b', names[::-1]), seen(tmp_path / 'b', names[:1])}
    others.add(seen(tmp_path / 'b', size=8))
    with open(tmp_path / 'b' / '1.png', 'ab') as file:
        file.write(b'x')
    others.add(seen(tmp_path / 'b'))
    (tmp_path / 'b' / '2.png').unlink()
    others.add(seen(tmp_path / 'b'))
    assert len(others) == 6


def test_the_name_decides_nothing(tmp_path):
    "Seven formats are read, told by their bytes; another one is no image, whatever it is called"
    im = Image.new('RGB', (40, 30), (200, 30, 60))
    for kind in ('JPEG', 'PNG', 'GIF', 'BMP', 'PPM', 'TIFF', 'WEBP', 'MPO'):
        im.save(tmp_path / 'x.gif', kind)
        assert (read_image(tmp_path / 'x.gif', 8)[0].float() - 200).abs().max() < 8, kind
    for kind in ('EPS', 'PDF', 'ICO', 'TGA', 'PCX', 'SGI', 'DDS', 'IM'):
        im.save(tmp_path / 'x.png', kind)
        one_line(lambda: read_image(tmp_path / 'x.png'), ValueError, 'none of JPEG')
    os.mkfifo(tmp_path / 'pipe.png')
    one_line(lambda: read_image(tmp_path / 'pipe.png'), ValueError, 'plain file')
    one_line(lambda: read_image(tmp_path / 'a\nb.png'), ValueError, r'a\nb.png')


def chunk(kind, content):
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def png16(x):
    "A 16-bit PNG, which Pillow reads but does not write in color"
    h, w, c = x.shape
    head = struct.pack('>IIBBBBB', w, h, 16, {1: 0, 3: 2, 4: 6}[c], 0, 0, 0)
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in x)
    parts = chunk(b'IHDR', head), chunk(b'IDAT', zlib.compress(rows)), chunk(b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


@pytest.mark.parametrize('channels', [1, 3, 4])
@pytest.mark.parametrize('bits', [9, 12, 16])
def test_levels_of_a_camera(bits, channels):
    "What a camera puts into 16-bit files keeps its gray levels, by the greatest value of the set"
    top = 2**bits - 1
    ramp = np.linspace(0, top, 256).round().astype(np.uint16).reshape(16, 16, 1)
    bright, dark = (np.repeat(share, channels, 2) for share in (ramp, ramp // 8))
    if channels == 4:
        bright[..., 3] = dark[..., 3] = 65535
    sources = [io.BytesIO(png16(x)) for x in (bright, dark)]
    levels = find_levels(sources)
    assert levels == (0, top)
    for source, x in zip(sources, (bright, dark)):
        got = read_image(source, 16, levels)[0].double()
        assert (got - torch.from_numpy(x[..., 0] * (255 / top))).abs().max() <= 1


@pytest.mark.parametrize(
    'odd', [(), (np.inf,), (-np.inf,), (np.nan,), (-9999,), (3.4e38,), (-9999, 1e30, np.nan)]
)
@pytest.mark.parametrize('low, high', [(0, 1), (0, 255), (0, 3000.5), (-3, 9), (1e-6, 1e-3)])
def test_levels_of_a_map(tmp_path, low, high, odd):
    "A marker for 'no data' does not decide what is black and what is white"
    x = np.linspace(low, high, 256, dtype=np.float32)
    marked = x.copy()
    marked[: 4 * len(odd) : 4] = odd
    paths = [tmp_path / '1.tif', tmp_path / '2.tif']
    for path, values in zip(paths, (marked, x)):
        Image.fromarray(values.reshape(16, 16)).save(path)
    levels = find_levels(paths)
    assert np.allclose(levels, (low, high), rtol=0.03, atol=1e-5)
    assert len(read_image(paths[1], 16, levels).unique()) > 200
    assert len(read_image(paths[0], 16, levels).unique()) > 200


def test_levels_need_more_than_8_bits(tmp_path):
    tree(tmp_path, 'a.png', 'b.jpg')
    (tmp_path / 'c.png').write_bytes(b'junk')
    assert find_levels([*tmp_path.iterdir(), tmp_path / 'none.png']) is None and find_levels([]) is None


def with_note(path, *entries):
    "A white left half, stored sideways, with an EXIF note of these entries"
    note = b'II*\0' + struct.pack('<IH', 8, len(entries)) + b''.join(entries) + bytes(4)
    half = Image.new('L', (60, 40))
    half.paste(255, (0, 0, 30, 40))
    half.transpose(Image.Transpose.ROTATE_90).save(path, 'JPEG', quality=95, exif=b'Exif\0\0' + note)
    return path


@pytest.mark.parametrize(
    'number, kind, count, value',
    [
        (0x10E, 2, 4, b'\xff\xfe\xfd\xfc'),
        (0x132, 3, 2, b'\1\0\2\0'),
        (0x9C9B, 1, 3, b'abc\0'),
        (0x8769, 4, 1, b'\xff\xff\0\0'),
        (0x927C, 7, 2**31 - 1, b'\x08\0\0\0'),
        (0x9000, 99, 1, b'1234'),
        (0x8825, 4, 1, b'\x08\0\0\0'),
        (0x100, 2, 4, b'abc\0'),  # from here on those that Pillow's own turning fails for
        (0x103, 4, 1, b'\xff\xff\xff\xff'),
        (0x10F, 11, 1, b'\0\0\xc0\x7f'),
        (0x11A, 11, 1, b'\0\0\xc0\x7f'),
        (0x128, 7, 4, b'\xff\xfe\0a'),
        (0x8769, 9, 1, b'\xff\xff\xff\xff'),
    ],
)
@pytest.mark.filterwarnings('ignore')  # Pillow's
def test_odd_notes_still_turn(tmp_path, number, kind, count, value):
    "A note that Pillow can read but not write anew drops no photograph"
    turn = struct.pack('<HHIHH', 0x112, 3, 1, 6, 0)
    odd = struct.pack('<HHI', number, kind, count) + value
    got = read_image(with_note(tmp_path / 'x.jpg', turn, odd), 16)[0].float()
    assert got[:, :6].min() > 235 and got[:, 10:].max() < 20


def test_large_photographs(tmp_path):
    "A JPEG decodes at an eighth of its size, whatever Pillow thinks of its pixels"
    picture(tmp_path / 'x.jpg', size=(14000, 13000))
    assert read_image(tmp_path / 'x.jpg', 32).shape == (3, 32, 32)
    row = b'\0' + bytes(3 * 20_000)
    deflate = zlib.compressobj(9)
    rows = b''.join(deflate.compress(row) for _ in range(20_000)) + deflate.flush()
    head = struct.pack('>IIBBBBB', 20_000, 20_000, 8, 2, 0, 0, 0)
    bomb = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')
    one_line(lambda: read_image(io.BytesIO(bomb)), ValueError, 'decoding takes 3.2 GB')


def test_memory_is_shared_by_threads(tmp_path, monkeypatch):
    "Images that do not fit side by side are decoded one after another, and all of them are"
    tree(tmp_path, *(f'{i}.png' for i in range(12)))
    need = 20 * 16 * 8
    monkeypatch.setattr(files, 'MEMORY', need)
    monkeypatch.setattr(files, '_free', need)
    least = []
    decode_one = files._flat

    def slowly(*given):
        time.sleep(0.01)  # time for the others to begin
        least.append(files._free)
        return decode_one(*given)

    monkeypatch.setattr(files, '_flat', slowly)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda i: read_image(tmp_path / f'{i}.png', 8), range(12)))
    assert least == [0] * 12 and files._free == need


@pytest.mark.filterwarnings('ignore')  # Pillow's
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'GIF', 'BMP', 'PPM', 'TIFF', 'WEBP'])
def test_damaged_files(kind):
    "Flipped bits and missing ends: an image, or one line"
    whole = io.BytesIO()
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (30, 40, 3)).astype(np.uint8)).save(whole, kind)
    draw = np.random.RandomState(1)
    for trial in range(40):
        raw = bytearray(whole.getvalue())
        if trial % 4 == 0:
            del raw[draw.randint(len(raw)) :]
        else:
            raw[draw.randint(min(len(raw), 300))] ^= 1 << draw.randint(8)
        try:
            assert read_image(io.BytesIO(bytes(raw)), 8).shape == (3, 8, 8)
        except ValueError as e:
            assert '\n' not in str(e)


def test_flips_in_the_cache(tmp_path, monkeypatch):
    "Another bit anywhere in the cache: it is made again, and the images are the same"
    monkeypatch.setenv('JEPA_LIT_CACHE', str(tmp_path / 'cache'))
    tree(tmp_path, *(f'{i}.png' for i in range(3)))
    (tmp_path / 'bad.png').write_bytes(b'')
    found = Files(sorted(map(str, tmp_path.glob('*.png'))), size=4)
    first, _ = decode(found)
    [cache] = (tmp_path / 'cache').iterdir()
    whole = cache.read_bytes()
    for at in range(0, 8 * len(whole), 7):
        raw = bytearray(whole)
        raw[at // 8] ^= 1 << at % 8
        cache.write_bytes(raw)
        again, note = decode(found)
        assert torch.equal(again.pixels, first.pixels) and again.skipped == first.skipped, at
        assert 'rebuilt' in note, at
    cache.unlink()
    os.mkfifo(cache)
    assert torch.equal(decode(found)[0].pixels, first.pixels) and cache.is_file()


def test_the_cache_sees_a_file_put_in_place_of_another(tmp_path, monkeypatch):
    "Of the same name, length and time"
    monkeypatch.setenv('JEPA_LIT_CACHE', str(tmp_path / 'cache'))
    for name, color in (('a', (200, 30, 60)), ('b', (60, 30, 200))):
        picture(tmp_path / f'{name}.bmp', color)
    path = str(tmp_path / 'a.bmp')
    first, _ = decode(Files([path], size=4))
    was = os.stat(path)
    os.replace(tmp_path / 'b.bmp', path)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert os.path.getsize(path) == was.st_size
    assert not torch.equal(decode(Files([path], size=4))[0].pixels, first.pixels)


def test_home_is_written_out(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    picture(tmp_path / 'pics' / 'x.png')
    monkeypatch.setenv('JEPA_LIT_CACHE', '~/kept')
    assert files.cache_folder() == tmp_path / 'kept' and find_images('~/pics') == ['x.png']
    assert read_image('~/pics/x.png', 4).shape == (3, 4, 4)
    with files.atomic_write('~/note.txt') as tmp:
        tmp.write_text('é', encoding='utf-8')
    assert files.read_text('~/note.txt') == 'é'
    one_line(lambda: find_images('~nobody-here/x'), FileNotFoundError, '~nobody-here')


def test_all_others_are_counted(tmp_path):
    tree(tmp_path, 'a/1.png', 'a/2.JPEG', '@eaDir/1.png/small.jpg', '__MACOSX/3.png', '.trash/4.png')
    for name in ('x.HEIC', 'y.heic', 'z.CR2', 'none', '._1.png', 'Thumbs.db', 'a/odd\n.ra\x1bw'):
        (tmp_path / name).write_bytes(b'x')
    os.mkfifo(tmp_path / 'pipe.png')
    os.symlink(tmp_path, tmp_path / 'a' / 'loop')
    found, others = files.survey_folder(tmp_path)
    assert found == ['a/1.png', 'a/2.JPEG']
    expected = (
        '2 .heic, 1 .cr2, 1 without extension, 1 .db, 1 no plain files, 1 hidden files, 3 hidden folders'
    )
    for part in (*expected.split(', '), r'1 .ra\x1bw', '1 links to a folder that is read anyway'):
        assert part in others, (part, others)


def test_the_default_device_does_not_matter(tmp_path, monkeypatch):
    monkeypatch.setenv('JEPA_LIT_CACHE', str(tmp_path / 'cache'))
    tree(tmp_path, *(f'{i}.png' for i in range(4)))
    found = Files(sorted(map(str, tmp_path.glob('*.png'))), size=4)

    def made():
        images, _ = decode(found)
        [(pixels, index)] = batches(found, [2, 0])
        return images.pixels, pixels, index, next(batches(images, [3, 1]))[0], found.file_sizes

    expected = made()
    torch.set_default_device('meta')
    try:
        again = made()
        (tmp_path / 'cache').rename(tmp_path / 'old')
        again += made()
    finally:
        torch.set_default_device(None)
    assert all(torch.equal(a, b) for a, b in zip(expected * 2, again))

"Images of every kind and shape, whole and broken, in memory and on disk"

import jaxtyping, numpy as np, pytest, torch
from PIL import Image
from jepa_lit.data import Images
from jepa_lit.files import Files, batches, read_image, to_rgb


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

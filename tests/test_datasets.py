"Data sets in every layout, and every fault we could think of"

import gzip, os, pickle, time
from pathlib import Path
import jaxtyping, numpy as np, pytest, torch, torchvision
from PIL import Image
from jepa_lit import files
from jepa_lit.data import Images, Splits, split
from jepa_lit.datasets import LOADERS, SETS, DataConfig, channel_statistics, load, read_idx
from jepa_lit.files import Files, batches, find_images

REAL_CIFAR10 = torchvision.datasets.CIFAR10
DEBIAN = Path('/usr/share/datasets/fashion-mnist')
BATCHES = [*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch']


@pytest.fixture(autouse=True)
def alone(tmp_path_factory, monkeypatch):
    "Each test has its own home and cache, and no network"
    home = tmp_path_factory.mktemp('home')
    monkeypatch.setenv('HOME', str(home))
    monkeypatch.setenv('JEPA_LIT_CACHE', str(home / 'cache'))
    monkeypatch.delenv('JEPA_LIT_DATA', raising=False)

    def refuse(*a, **k):
        raise AssertionError('a test must not download')

    for name in ('FashionMNIST', 'MNIST', 'CIFAR10', 'STL10', 'Imagenette'):
        monkeypatch.setattr(torchvision.datasets, name, refuse)
    return home


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


def test_normalization(tmp_path):
    x = torch.randint(0, 256, (50, 3, 6, 6), dtype=torch.uint8)
    mean, std = channel_statistics(Images(x))
    assert torch.allclose(mean, (x / 255).mean((0, 2, 3)), atol=1e-5) and torch.allclose(
        std, (x / 255).std((0, 2, 3), correction=0), atol=1e-5
    )
    assert (channel_statistics(Images(torch.zeros(2, 1, 4, 4, dtype=torch.uint8)))[1] > 0).all()
    s = load('folder', tree(tmp_path, *(f'{i}.png' for i in range(4))), cache_gb=0)
    assert channel_statistics(s.train)[0].shape == (3,)
    one_line(lambda: channel_statistics(Images(x[:0])), ValueError, 'no images')


def test_digits():
    s = load()
    assert s.train.pixels.shape[1:] == (1, 32, 32) and s.train.pixels.dtype == torch.uint8
    assert (
        len(s.train) + len(s.test) == 1797
        and s.unlabeled is None
        and s.train.classes == SETS['digits']['classes']
    )
    assert s.train.pixels.max() == 255 and load(size=12).train.size == 12
    assert not torch.equal(s.test.labels, load(split_seed=1).test.labels)


def idx(x):
    return (
        b'\0\0\x08'
        + bytes([x.ndim])
        + b''.join(n.to_bytes(4, 'big') for n in x.shape)
        + x.astype(np.uint8).tobytes()
    )


def mnist_like(folder, zipped=False, n=6):
    folder.mkdir(parents=True, exist_ok=True)
    for p, k in (('train', n), ('t10k', n // 2)):
        for kind, x in (
            ('images-idx3', np.arange(k * 784).reshape(k, 28, 28) % 251),
            ('labels-idx1', np.arange(k) % 10),
        ):
            raw = idx(x)
            (folder / (f'{p}-{kind}-ubyte' + '.gz' * zipped)).write_bytes(
                gzip.compress(raw) if zipped else raw
            )
    return folder


@pytest.mark.parametrize('sub', ['', 'MNIST/raw'])
@pytest.mark.parametrize('zipped', [False, True])
def test_mnist(tmp_path, sub, zipped):
    mnist_like(tmp_path / sub, zipped)
    s = load('mnist', tmp_path)
    assert (
        len(s.train) == 6
        and len(s.test) == 3
        and s.train.size == 28
        and s.train.labels.tolist() == list(range(6))
    )
    assert torch.equal(
        s.train.pixels[1, 0], torch.from_numpy((np.arange(784, 1568) % 251).reshape(28, 28).astype(np.uint8))
    )
    assert str(tmp_path) in s.notes[0] and load('mnist', tmp_path, size=32).train.size == 32


def test_search_order(tmp_path, monkeypatch):
    mnist_like(tmp_path / 'env' / 'FashionMNIST' / 'raw', n=4)
    mnist_like(tmp_path / 'root', n=8)
    monkeypatch.setenv('JEPA_LIT_DATA', str(tmp_path / 'env'))
    assert len(load('fashion_mnist').train) == 4
    assert len(load('fashion_mnist', tmp_path / 'root').train) == 8
    (tmp_path / 'empty').mkdir()
    assert len(load('fashion_mnist', tmp_path / 'empty').train) == 4


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_debian():
    s = load('fashion_mnist')
    assert (
        len(s.train) == 60_000 and len(s.test) == 10_000 and s.train.labels.bincount().tolist() == [6000] * 10
    )
    assert str(DEBIAN) in s.notes[0]
    mean, std = channel_statistics(s.train)
    assert abs(mean - 0.286) < 0.01 and abs(std - 0.353) < 0.01  # the published constants


@pytest.mark.parametrize(
    'raw, said',
    [
        (b'', 'begins'),
        (b'\0\0\x0d\x01', 'begins 00 00 0d'),
        (b'PK\x03\x04', 'begins 50 4b 03'),
        (b'\0\0\x08\x00', ''),
        (b'\0\0\x08\x02\0\0', 'smaller'),
        (idx(np.zeros((2, 3)))[:-1], 'size 5 into shape (2,3)'),
        (idx(np.zeros(3)) + b'x', 'size 4 into shape (3,)'),
        (gzip.compress(idx(np.zeros(300)), mtime=0)[:-9], ''),
        (b'\x1f\x8b' + b'junk' * 9, ''),
    ],
)
def test_idx_faults(tmp_path, raw, said):
    (tmp_path / 'file').write_bytes(raw)
    path = str(tmp_path / 'file')
    one_line(lambda: read_idx(path), ValueError, path, 'not a whole idx file of bytes', said)


def test_mnist_faults(tmp_path):
    mnist_like(tmp_path)
    (tmp_path / 'train-labels-idx1-ubyte').write_bytes(idx(np.zeros(5)))
    one_line(
        lambda: load('mnist', tmp_path),
        ValueError,
        'mnist',
        str(tmp_path),
        '5 labels for 6 images',
    )
    (tmp_path / 'train-labels-idx1-ubyte').write_bytes(idx(np.full(6, 10)))
    one_line(lambda: load('mnist', tmp_path), ValueError, '0..9')
    (tmp_path / 'train-labels-idx1-ubyte').write_bytes(idx(np.zeros((6, 1))))
    one_line(lambda: load('mnist', tmp_path), ValueError, 'tensor (n)')


def test_cifar10_binary(tmp_path):
    home = tmp_path / 'cifar-10-batches-bin'
    home.mkdir()
    x = np.random.RandomState(0).randint(0, 256, (6, 2, 3073)).astype(np.uint8)
    x[..., 0] %= 10
    for b, rows in zip(BATCHES, x):
        rows.tofile(home / f'{b}.bin')
    for root in (tmp_path, home):
        s = load('cifar10', root)
        assert len(s.train) == 10 and len(s.test) == 2
        assert (
            torch.equal(s.train.pixels[0], torch.from_numpy(x[0, 0, 1:].reshape(3, 32, 32)))
            and s.test.labels.tolist() == x[5, :, 0].tolist()
        )
    (home / 'test_batch.bin').write_bytes(b'1234')
    one_line(lambda: load('cifar10', tmp_path), ValueError, 'cifar10', str(home), 'multiple')


def test_cifar10_pickle_is_never_read_unless_known(tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'owned'),)

    monkeypatch.setattr(torchvision.datasets, 'CIFAR10', REAL_CIFAR10)  # it looks at the md5 first
    home = tmp_path / 'cifar-10-batches-py'
    home.mkdir()
    for b in [*BATCHES, 'batches.meta']:
        (home / b).write_bytes(pickle.dumps(Evil()))
    one_line(lambda: load('cifar10', tmp_path), ValueError, 'cifar10: not its known files')
    assert not (tmp_path / 'owned').exists()


def test_cifar10_through_torchvision(tmp_path, monkeypatch):
    class Fake:
        def __init__(self, root, train=True, download=False):
            if download:
                home = Path(root) / 'cifar-10-batches-py'
                home.mkdir(parents=True)
                for b in BATCHES:
                    (home / b).touch()
            n = 4 if train else 2
            self.data, self.targets = (
                np.arange(n * 3072).reshape(n, 32, 32, 3).astype(np.uint8),
                list(range(n)),
            )

    monkeypatch.setattr(torchvision.datasets, 'CIFAR10', Fake)
    s = load('cifar10', tmp_path)
    assert (
        s.train.pixels.shape == (4, 3, 32, 32)
        and s.train.pixels[0, :, 0, 0].tolist() == [0, 1, 2]
        and len(s.test) == 2
    )


def stl_like(home, unlabeled=True):
    home.mkdir(parents=True)
    x = np.zeros((3, 3, 96, 96), np.uint8)
    x[:, :, 5, :] = 200  # column 5 of every image: stored column by column
    for p in ('train', 'test') + ('unlabeled',) * unlabeled:
        x.tofile(home / f'{p}_X.bin')
    for p in ('train', 'test'):
        np.array([1, 10, 3], np.uint8).tofile(home / f'{p}_y.bin')


def test_stl10(tmp_path):
    stl_like(tmp_path / 'a' / 'stl10_binary')
    stl_like(tmp_path / 'b', False)
    s = load('stl10', tmp_path / 'a')
    assert s.train.pixels.shape == (3, 3, 96, 96) and s.train.labels.tolist() == [0, 9, 2]
    assert (s.train.pixels[:, :, :, 5] == 200).all() and (s.train.pixels[:, :, 5, :5] == 0).all()
    assert len(s.unlabeled) == 3 and s.unlabeled.labels is None and 'unlabeled' in repr(s)
    assert (
        load('stl10', tmp_path / 'b').unlabeled is None
        and load('stl10', tmp_path / 'a', size=48).unlabeled.size == 48
    )
    np.array([0, 1, 2], np.uint8).tofile(tmp_path / 'b' / 'train_y.bin')
    one_line(lambda: load('stl10', tmp_path / 'b'), ValueError, '0..9')


@pytest.mark.parametrize('sub', ['imagenette2-160', 'imagenette2-320', 'imagenette2', ''])
def test_imagenette(tmp_path, sub):
    tree(
        tmp_path / sub,
        *(
            f'{p}/{c}/{i}.JPEG'
            for p in ('train', 'val')
            for c in ('n01440764', 'n03888257')
            for i in range(2)
        ),
    )
    s = load('imagenette', tmp_path, size=16)
    assert (
        s.train.classes == ('tench', 'parachute') and len(s.train) == len(s.test) == 4 and s.train.size == 16
    )


@pytest.mark.parametrize(
    'name, kind, make',
    [
        ('mnist', 'MNIST', lambda r: mnist_like(r / 'MNIST' / 'raw')),
        ('stl10', 'STL10', lambda r: stl_like(r / 'stl10_binary')),
        (
            'imagenette',
            'Imagenette',
            lambda r: tree(
                r / 'imagenette2-160', 'train/a/1.jpg', 'train/b/1.jpg', 'val/a/1.jpg', 'val/b/1.jpg'
            ),
        ),
    ],
)
@pytest.mark.parametrize('where', ['root', 'variable', 'home'])
def test_download(tmp_path, monkeypatch, alone, name, kind, make, where):
    called = []

    def fake(root, download=False, **kw):
        called.append((root, download))
        make(Path(root))

    monkeypatch.setattr(torchvision.datasets, kind, fake)
    if where == 'variable':
        monkeypatch.setenv('JEPA_LIT_DATA', str(tmp_path))
    target = alone / '.cache' / 'jepa_lit' if where == 'home' else tmp_path
    for _ in range(2):
        s = load(name, tmp_path if where == 'root' else None, size=8)
    assert called == [(str(target), True)] and str(target) in s.notes[0]  # the second time it is there


def test_download_fails(tmp_path, monkeypatch):
    def fail(root, download=False):
        raise RuntimeError('Error downloading\n  the file')

    monkeypatch.setattr(torchvision.datasets, 'MNIST', fail)
    one_line(
        lambda: load('mnist', tmp_path),
        FileNotFoundError,
        'mnist',
        str(tmp_path),
        'Error downloading the file',
    )
    monkeypatch.setattr(torchvision.datasets, 'MNIST', lambda root, download: None)
    one_line(lambda: load('mnist', tmp_path), FileNotFoundError, 'not to be found')


def test_folder_with_classes(tmp_path):
    tree(tmp_path, *(f'{c}/deep/{i}.png' for c in ('cat', 'Dog', 'eel') for i in range(10)))
    s = load('folder', tmp_path)
    assert (
        s.train.classes == ('Dog', 'cat', 'eel')
        and len(s.train) == 24
        and s.test.labels.bincount().tolist() == [2, 2, 2]
    )
    assert s.train.pixels.shape == (24, 3, 64, 64) and all(
        n.split('/')[0] == s.train.classes[y] for n, y in zip(s.train.names, s.train.labels)
    )
    assert not set(s.train.names) & set(s.test.names)
    assert load('folder', tmp_path, split_seed=1).test.names != s.test.names


@pytest.mark.parametrize('part', ['test', 'val', 'valid', 'validation'])
def test_folder_in_parts(tmp_path, part):
    tree(
        tmp_path,
        *(f'{p}/{c}/{i}.png' for p in ('train', part) for c in 'ab' for i in range(3)),
        'notes/x.png',
    )
    s = load('folder', tmp_path, size=8)
    assert len(s.train) == len(s.test) == 6 and s.test.names[0].startswith(part) and '12 of 13' in s.notes[0]


def test_folder_prefers_test_and_needs_its_labels(tmp_path):
    tree(
        tmp_path,
        *(f'{p}/{c}/{i}.png' for p in ('train', 'val') for c in 'ab' for i in range(5)),
        'test/1.png',
        'test/2.png',
    )
    assert load('folder', tmp_path, size=8).test.names[0].startswith('val/')
    tree(tmp_path, 'test/a/1.png')
    (tmp_path / 'test/1.png').unlink()
    (tmp_path / 'test/2.png').unlink()
    assert load('folder', tmp_path, size=8).test.names == ('test/a/1.png',)
    tree(tmp_path, 'test/unheard/1.png')
    assert load('folder', tmp_path, size=8).test.names[0].startswith('val/')


def test_folder_with_only_train(tmp_path):
    tree(tmp_path, *(f'train/{c}/{i}.png' for c in 'ab' for i in range(5)))
    s = load('folder', tmp_path, size=8)
    assert s.train.classes == ('a', 'b') and len(s.test) == 2


@pytest.mark.parametrize(
    'names',
    [
        ('1.png', '2.png', '3.png'),
        ('all/1.png', 'all/2.png'),
        ('a/1.png', 'b/2.png', '3.png'),
        ('train/1.png', 'train/2.png', 'test/3.png', 'test/4.png'),
    ],
)
def test_folder_without_labels(tmp_path, names):
    s = load('folder', tree(tmp_path, *names), size=8)
    assert (
        s.train.labels is None
        and s.test is None
        and s.train.classes == ()
        and any('no labels' in n for n in s.notes)
    )
    assert s.train.names == tuple(sorted(n for n in names if not n.startswith('test/')))


def test_folder_one_image_a_class(tmp_path):
    s = load('folder', tree(tmp_path, 'a/1.png', 'b/1.png', 'c/1.png'), size=8)
    assert len(s.train) == 3 and s.test is None


def test_endings_and_hidden(tmp_path):
    for e in ('JPG', 'Jpeg', 'png', 'bmp', 'gif', 'webp', 'TIF', 'tiff', 'ppm', 'pgm'):
        picture(tmp_path / f'x.{e}')
    for n in ('.hidden.png', '.git/a.png', 'readme.txt', 'png', 'a.png.bak'):
        (tmp_path / n).parent.mkdir(exist_ok=True)
        (tmp_path / n).write_bytes(b'x')
    assert len(find_images(tmp_path)) == 10 and len(load('folder', tmp_path, size=8).train) == 10


def test_links(tmp_path):
    root, outside = tmp_path / 'root', tmp_path / 'outside'
    tree(root, 'a/1.png', 'b/2.png')
    tree(outside, '3.png')
    os.symlink(root, root / 'a' / 'loop')
    os.symlink(tmp_path, root / 'up')
    os.symlink(root / 'a', root / 'again')
    os.symlink(outside, root / 'c')
    os.symlink(outside, root / 'd')
    os.symlink(root / 'gone.png', root / 'b' / '9.png')
    os.symlink(root / 'a' / '1.png', root / 'b' / '1.png')
    os.symlink(outside, outside / 'self')
    assert find_images(root) == ['a/1.png', 'b/1.png', 'b/2.png', 'b/9.png', 'c/3.png']
    assert load('folder', root, size=8).train.skipped == ('b/9.png',)
    if hasattr(os, 'mkfifo'):
        os.mkfifo(root / 'b' / 'pipe.png')
        assert len(find_images(root)) == 5  # opening it would wait forever


def test_bad_files_are_skipped(tmp_path, monkeypatch):
    tree(tmp_path, *(f'{c}/{i}.jpg' for c in 'ab' for i in range(6)))
    whole = picture(tmp_path / 'x.jpg', size=(300, 200)).read_bytes()
    (tmp_path / 'x.jpg').unlink()
    (tmp_path / 'a/0.jpg').write_bytes(whole[: len(whole) // 2])
    (tmp_path / 'a/zero.png').touch()
    (tmp_path / 'b/text.png').write_text('hello')
    (tmp_path / 'b/folder.png').mkdir()
    png = picture(tmp_path / 'p.png', size=(99, 99)).read_bytes()
    (tmp_path / 'p.png').unlink()
    (tmp_path / 'b/half.png').write_bytes(png[: len(png) // 2])
    bad = {'a/0.jpg', 'a/zero.png', 'b/text.png', 'b/half.png'}
    for _ in range(2):  # decoded, then from the cache
        s = load('folder', tmp_path, size=16)
        assert set(s.train.skipped + s.test.skipped) == bad and len(s.train) + len(s.test) == 11
        note = s.notes[-1]
        assert '4 of 15' in note and all(b in note for b in bad)
    f = load('folder', tmp_path, size=16, cache_gb=0)
    for d in (f.train, f.test):
        list(batches(d, range(len(d)), 4))
    assert set(f.train.skipped + f.test.skipped) == bad and f.train.skipped is not f.test.skipped
    assert set(f.train.skipped) == set(s.train.skipped)  # the same split, in memory or streamed


def test_too_many_pixels(tmp_path, monkeypatch):
    tree(tmp_path, '1.png', '2.png')
    picture(tmp_path / '3.png', size=(400, 400))
    picture(tmp_path / '4.png', size=(150, 100))
    monkeypatch.setattr(files, 'MEMORY', 10_000)
    assert load('folder', tmp_path, size=8).train.skipped == ('3.png', '4.png')


def test_folder_faults(tmp_path):
    one_line(lambda: load('folder'), ValueError, 'needs root')
    one_line(
        lambda: load('folder', tmp_path / 'none'), FileNotFoundError, str(tmp_path / 'none'), 'no such folder'
    )
    one_line(lambda: load('mnist', tmp_path / 'none'), FileNotFoundError, 'no such folder')
    (tmp_path / 'file').touch()
    one_line(lambda: load('folder', tmp_path / 'file'), ValueError, 'a folder is expected')
    (tmp_path / 'empty').mkdir()
    one_line(lambda: load('folder', tmp_path / 'empty'), ValueError, 'no images among 0 files')
    (tmp_path / 'text').mkdir()
    for i in range(3):
        (tmp_path / 'text' / f'{i}.txt').touch()
    one_line(lambda: load('folder', tmp_path / 'text'), ValueError, 'no images among 3 files', '.jpg')
    one_line(
        lambda: load('folder', tree(tmp_path / 'one', 'x.png')),
        ValueError,
        '1 of 1 image files',
        'at least 2',
    )
    (tmp_path / 'bad').mkdir()
    for i in range(8):
        (tmp_path / 'bad' / f'{i}.jpg').write_bytes(b'\xff\xd8' + bytes([i]))
    one_line(lambda: load('folder', tmp_path / 'bad'), ValueError, '8 of 8', '0.jpg', '...', 'at least 2')
    picture(tmp_path / 'bad' / 'good.png')
    one_line(lambda: load('folder', tmp_path / 'bad'), ValueError, '8 of 9')


@pytest.mark.parametrize('name', ['digit', 'fashion-mnist', 'cifar', 'imagenet', '', 'zzz', 3])
def test_unknown_set(name):
    text = one_line(lambda: load(name), ValueError, f"data set '{name}'")
    assert {
        'digit': 'digits',
        'fashion-mnist': 'fashion_mnist',
        'cifar': 'cifar10',
        'imagenet': 'imagenette',
    }.get(name, 'there are digits') in text


@pytest.mark.parametrize('size', [0, -1, 2.5, '32', True])
def test_bad_size(size):
    one_line(lambda: load(size=size), ValueError, 'size', repr(size))


def test_names_that_are_not_unicode(tmp_path):
    tree(tmp_path, '1.png', '2.png')
    try:
        os.rename(os.fsencode(tmp_path / '1.png'), os.fsencode(tmp_path) + b'/\xff.png')
    except OSError:
        pytest.skip('this file system wants unicode names')
    s = load('folder', tmp_path, size=8)
    assert len(s.train) == 2 and [n.encode() for n in s.train.names]


def test_cache(tmp_path, alone, monkeypatch):
    tree(tmp_path, '1.png', '2.png')
    s = load('folder', tmp_path, size=16)
    [file] = (alone / 'cache').iterdir()
    assert any('cache: wrote' in n and str(file) in n and 'MB' in n for n in s.notes)
    with monkeypatch.context() as m:
        m.setattr(files, 'read_image', lambda *a: pytest.fail('decoded again'))
        again = load('folder', tmp_path, size=16)
    assert torch.equal(again.train.pixels, s.train.pixels) and any('cache: found' in n for n in again.notes)
    picture(tmp_path / '2.png', (1, 2, 3))
    os.utime(tmp_path / '2.png', (time.time() + 5,) * 2)
    assert load('folder', tmp_path, size=16).train.pixels[1, :, 8, 8].tolist() == [
        1,
        2,
        3,
    ]  # a changed file is noticed
    load('folder', tmp_path, size=8)
    assert len(list((alone / 'cache').iterdir())) == 3 and not list((alone / 'cache').glob('*.part'))


@pytest.mark.parametrize(
    'spoil', [lambda b: b[:-3], lambda b: b'', lambda b: b'junk' * 50, lambda b: b[:-1] + bytes([b[-1] ^ 1])]
)
def test_damaged_cache(tmp_path, alone, spoil):
    s = load('folder', tree(tmp_path, '1.png', '2.png'), size=16)
    [file] = (alone / 'cache').iterdir()
    file.write_bytes(spoil(file.read_bytes()))
    again = load('folder', tmp_path, size=16)
    assert torch.equal(again.train.pixels, s.train.pixels) and any(
        'damaged, rebuilt' in n for n in again.notes
    )
    assert any('cache: found' in n for n in load('folder', tmp_path, size=16).notes)


def test_cache_cannot_be_written(tmp_path, alone, monkeypatch):
    (tmp_path / 'file').touch()
    tree(tmp_path / 'root', '1.png', '2.png')
    monkeypatch.setenv('JEPA_LIT_CACHE', str(tmp_path / 'file' / 'below'))
    s = load('folder', tmp_path / 'root', size=16)
    assert len(s.train) == 2 and any('cannot be written' in n and 'in memory' in n for n in s.notes)


def test_full_disk(tmp_path, alone, monkeypatch):
    def full(*a, **k):
        Path(a[1]).write_bytes(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(files, 'save_file', full)
    s = load('folder', tree(tmp_path, '1.png', '2.png'), size=16)
    assert any('No space left' in n for n in s.notes) and not list((alone / 'cache').iterdir())


def test_streamed_when_too_large(tmp_path, alone):
    s = load(
        'folder', tree(tmp_path, *(f'{c}/{i}.png' for c in 'ab' for i in range(5))), size=16, cache_gb=1e-9
    )
    assert (
        isinstance(s.train, Files)
        and len(s.train) == 8
        and len(s.test) == 2
        and not (alone / 'cache').exists()
    )
    assert any('streamed' in n for n in s.notes) and s.train.classes == ('a', 'b')


def test_digits_are_pinned():
    assert load('digits', size=8).test.labels[:8].tolist() == [0, 7, 8, 5, 7, 9, 1, 2]


def test_a_set_of_ones_own(monkeypatch):
    "A function and two entries add a data set"

    def load_rings(root, size, split_seed, *_):
        images = Images(torch.full((10, 1, size, size), 7, dtype=torch.uint8), torch.arange(10) % 2)
        train, test = split(images.labels, 0.2, split_seed)
        return Splits('rings', images.select(train), images.select(test))

    monkeypatch.setitem(SETS, 'rings', dict(size=16, channels=1, classes=('a', 'b')))
    one_line(lambda: load('rings'), ValueError, 'import jepa_lit.rings first')
    monkeypatch.setitem(LOADERS, 'rings', load_rings)
    assert load('rings').train.size == 16 and len(load('rings', size=8).test) == 2


def test_data_config():
    assert DataConfig() == DataConfig('digits', None, None, 0, False) and 'split_seed: ' in DataConfig.__doc__


@pytest.mark.parametrize(
    'train, test',
    [
        ('train', 'test'),
        ('Train', 'Test'),
        ('TRAIN', 'VAL'),
        ('training', 'testing'),
        ('data/train', 'data/test'),
        ('my data/Training Set', 'my data/Test Set'),
        ('seg_train/seg_train', 'seg_test/seg_test'),
        ('images/train2017', 'images/val2017'),
        ('Train ', 'Test '),
        ('trainset', 'eval'),
    ],
)
@pytest.mark.parametrize('beside', ['', 'readme.png', 'unlabeled/1.png', '__MACOSX/Train/a/1.png'])
def test_parts_in_any_spelling(tmp_path, train, test, beside):
    learned = [f'{train}/{c}/{i}.png' for c in 'ab' for i in range(3)]
    judged = [f'{test}/{c}/{i}.png' for c in 'ab' for i in range(2)]
    tree(tmp_path, *learned, *judged, *([beside] if beside else []))
    s = load('folder', tmp_path, size=8)
    assert list(s.train.names) == learned and list(s.test.names) == judged and s.train.classes == ('a', 'b')
    aside = beside in ('readme.png', 'unlabeled/1.png')
    assert any('left aside' in note for note in s.notes) == aside


def test_parts_within_classes(tmp_path):
    tree(tmp_path, *(f'{c}/{p}/{i}.png' for c in ('cat', 'dog') for p in ('Train', 'Test') for i in range(2)))
    s = load('folder', tmp_path, size=8)
    assert s.test.names == ('cat/Test/0.png', 'cat/Test/1.png', 'dog/Test/0.png', 'dog/Test/1.png')
    assert s.train.classes == ('cat', 'dog') and len(s.train) == 4


def test_classes_as_another_system_spells_them(tmp_path):
    "A folder that a Mac wrote has é in two characters"
    tree(tmp_path, 'train/cafe\u0301/1.png', 'train/Dog/1.png', 'test/caf\u00e9/1.png', 'test/dog/1.png')
    s = load('folder', tmp_path, size=8)
    assert sorted(s.test.labels.tolist()) == [0, 1] and len(s.train) == 2


@pytest.mark.parametrize('names', ['train unlabeled', 'test val', 'fold1 fold2', 'Test cats'])
def test_classes_with_names_of_parts(tmp_path, names):
    tree(tmp_path, *(f'{c}/{i}.png' for c in names.split() for i in range(2)))
    assert any('warning: classes with names of parts' in n for n in load('folder', tmp_path, size=8).notes)


@pytest.mark.parametrize('up', ['pics', 'a/b/c'])
def test_a_folder_around_classes(tmp_path, up):
    tree(tmp_path, *(f'{up}/{c}/{i}.png' for c in ('trains', 'buses') for i in range(5)))
    s = load('folder', tmp_path, size=8)
    assert s.train.classes == ('buses', 'trains') and len(s.test) == 2 and 'warning' not in repr(s)


def test_levels_go_with_the_set(tmp_path):
    "Found once, said, the same streamed and decoded, and another set can be read by them"
    for folder, top in (('camera', 4095), ('full', 65535)):
        for i in range(4):
            x = np.linspace(0, top, 64).reshape(8, 8) * (i + 1) / 4
            picture(tmp_path / folder / f'{i}.png')
            Image.fromarray(x.astype(np.uint16)).save(tmp_path / folder / f'{i}.png')
    s = load('folder', tmp_path / 'camera', size=8)
    assert s.levels == (0, 4095) and any('more than 8 bits: 0 is black and 4095 white' in n for n in s.notes)
    assert [int(x.max()) for x in s.train.pixels] == [64, 127, 191, 255]
    streamed = load('folder', tmp_path / 'camera', size=8, cache_gb=0)
    assert torch.equal(streamed.train.read(1), s.train.pixels[1])
    assert streamed.train.fingerprint() == s.train.fingerprint()
    other = load('folder', tmp_path / 'full', size=8, levels=s.levels)
    assert other.levels == (0, 4095) and (other.train.pixels[3] == 255).float().mean() > 0.9
    one_line(lambda: load('folder', tmp_path / 'full', levels=(1, 1)), ValueError, 'black below white')
    tree(tmp_path / 'photos', '1.png', '2.png')
    assert load('folder', tmp_path / 'photos', size=8).levels is None


def test_names_are_printable(tmp_path):
    stray = os.fsdecode(b'caf\xe9')
    try:
        tree(tmp_path, f'{stray}/1.png', 'b\n/1\x1b.png')
    except OSError:
        pytest.skip('this file system has no such names')
    s = load('folder', tmp_path, size=8)
    assert s.train.classes == (r'b\n', r'caf\udce9') and s.train.names[0] == r'b\n/1\x1b.png'
    assert repr(s).encode() and not any('\n' in n for n in s.notes)


def test_a_small_zip_of_many_zeros(tmp_path):
    with gzip.open(tmp_path / 'zeros', 'wb', compresslevel=1) as file:
        file.write(b'\0\0\x08\x01\xff\xff\xff\xff')
        for _ in range(1100):
            file.write(bytes(2**20))
    one_line(lambda: read_idx(tmp_path / 'zeros'), ValueError, 'not a whole idx file')

"Tensors, seeds, splits and the two helpers of all chapters"

import inspect, pydoc, subprocess, sys
from dataclasses import FrozenInstanceError, dataclass
import jaxtyping, numpy as np, pytest, torch
from jepa_lit.data import (
    Images,
    Splits,
    documented,
    generator,
    one_of,
    part_of,
    printable,
    read_parameters,
    scenes,
    split,
)


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


def test_generator_is_pinned():
    "The same numbers in every process and release: a run resumes on another machine"
    assert generator(0, 'views', 7).initial_seed() == 3768281438
    assert generator(torch.tensor(0), 'views', np.int64(7)).initial_seed() == 3768281438
    seeds = {generator(*k).initial_seed() for k in [(0,), ('0',), (0, 0), (), (None,), (True,), (0.0,)]}
    assert len(seeds) == 7
    one_line(lambda: generator({}), TypeError, 'dict')


def test_split_is_pinned():
    assert split(1000, seed=0)[1][:6].tolist() == [10, 22, 23, 31, 32, 41]


@pytest.mark.parametrize('counts', [(10, 10), (100, 7, 2), (1, 1, 8), (3,)])
def test_split_parts(counts):
    y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    for seed in range(5):
        a, b = split(y, 0.2, seed)
        assert torch.equal(torch.cat([a, b]).sort().values, torch.arange(len(y)))
        for c, n in enumerate(counts):
            k = int((y[b] == c).sum())
            assert k == 0 if n == 1 else k == max(1, round(0.2 * n))
    assert not torch.equal(split(50, seed=0)[1], split(50, seed=1)[1])


def test_split_faults():
    one_line(lambda: split(1), ValueError, 'at least 2')
    one_line(lambda: split(torch.zeros(3, 2)), ValueError, '(3, 2)')
    for f in (0, 1, -1, 20):
        one_line(lambda: split(10, f), ValueError, str(f))


def test_images():
    x = torch.arange(4 * 3 * 2 * 2, dtype=torch.uint8).view(4, 3, 2, 2)
    im = Images(x, torch.tensor([0, 1, 0, 1]), ('a', 'b'), tuple('wxyz'), ('bad.png',))
    assert (
        len(im) == 4
        and im.size == 2
        and im.channels == 3
        and '2 classes' in repr(im)
        and '1 skipped' in repr(im)
    )
    part = im.select(im.labels == 1)
    assert part.names == ('x', 'z') and torch.equal(part.pixels, x[[1, 3]]) and part.classes == ('a', 'b')
    assert len(im.select([])) == 0 and len(im.select(np.array([2]))) == 1
    with pytest.raises(FrozenInstanceError):
        im.labels = None
    one_line(lambda: Images(x, torch.tensor([1, 2, 3])), ValueError, '3 labels for 4 images')
    one_line(lambda: Images(x, torch.zeros(4)), ValueError, 'int64', 'float32')
    one_line(lambda: Images(x, [0, 1, 0, 1]), ValueError, 'int64', 'list')
    one_line(lambda: Images(x, names=('a',)), ValueError, '1 names for 4 images')
    one_line(lambda: Images(x.float()), ValueError, 'float32')
    one_line(lambda: Images(x[0]), ValueError, '(3, 2, 2)')


def test_scenes():
    images, truth = scenes(40, size=32, most=6)
    assert (
        images.pixels.shape == (40, 3, 32, 32)
        and set(truth['count'].tolist()) == set(range(1, 7))
        and images.classes[-1] == '6'
    )
    assert [len(x.flatten(1).unique(dim=1).T) - 1 for x in images.pixels] == truth['count'].tolist()
    d = truth['distance'][truth['count'] > 1]
    assert (d > 0.18).all() and (d < 1.2).all() and truth['distance'][truth['count'] == 1].isnan().all()
    assert not torch.equal(images.pixels, scenes(40, size=32, most=6, seed=1)[0].pixels)
    one_line(lambda: scenes(0), ValueError, 'n >= 1')


def test_splits():
    im = Images(torch.zeros(3, 1, 2, 2, dtype=torch.uint8))
    s = Splits('toy', im, notes=('found',))
    assert (
        s.test is None
        and 'train: Images(3 of 1x2x2' in repr(s)
        and '(found)' in repr(s)
        and 'test' not in repr(s)
    )


def test_one_of():
    assert one_of('b', ('a', 'b'), 'letter') == 'b'
    text = one_line(lambda: one_of('digit', ('digits', 'mnist'), 'data set'), ValueError, "'digit'")
    assert text.endswith('did you mean digits?')
    one_line(lambda: one_of('zzz', ('digits', 'mnist'), 'data set'), ValueError, 'there are digits, mnist')


@documented
class Sampler:
    "Draws things."

    def __init__(
        self,
        grid: tuple[int, int],  # rows and columns
        count=4,  # how many
        *,
        scale: tuple[float, float] = (
            0.5,
            1.0,
        ),  # smallest and largest share
        silent: bool = False,
    ):
        self.grid = grid


def test_parameters_are_read():
    assert read_parameters(Sampler) == [
        ('grid', 'tuple[int, int]', '', 'rows and columns'),
        ('count', '', '4', 'how many'),
        ('scale', 'tuple[float, float]', '(0.5, 1.0)', 'smallest and largest share'),
        ('silent', 'bool', 'False', ''),
    ]

    @dataclass
    class Settings:
        "Some"

        lr: float = 1e-3  # peak
        steps: int = 10  # of the optimizer

    assert read_parameters(Settings) == [
        ('lr', 'float', '0.001', 'peak'),
        ('steps', 'int', '10', 'of the optimizer'),
    ]

    @dataclass
    class More(Settings):
        "Some more"

        clip: float = 1.0  # norm of the gradient

    assert [row[3] for row in read_parameters(More)] == ['peak', 'of the optimizer', 'norm of the gradient']


def test_help_shows_parameters():
    class Finer(Sampler):
        pass

    class Module(torch.nn.Module):
        "A module"

        def __init__(self, n: int):
            super().__init__()

    for shown in (pydoc.render_doc(Sampler), inspect.getdoc(Finer), Sampler((1, 2)).__doc__):
        assert 'Draws things.' in shown and 'count = 4\n' in shown and 'how many' in shown
    shown = pydoc.render_doc(documented(Module))
    assert 'n: int' in shown and 'Initialize internal Module state' not in shown.split('inherited')[0]


def test_help_without_source():
    "A class made on the fly keeps its one line"
    space = {}
    exec('class Made:\n    "One line"\n    def __init__(self, x): pass', space)
    assert documented(space['Made']).__doc__ == 'One line'


def test_import_is_light():
    "Who wants a loss does not pay for reading images"
    heavy = {'torchvision', 'PIL', 'tqdm', 'safetensors', 'msgspec', 'torch._dynamo', 'scipy', 'sklearn'}
    code = f'import sys, torch; before = set(sys.modules); import jepa_lit.data; print({heavy} & set(sys.modules) - before)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'set()'


def test_fingerprint():
    "The same for the same pixels, in any memory layout; another for other pixels, another order or shape"
    x = torch.arange(4 * 3 * 2 * 2, dtype=torch.uint8).view(4, 3, 2, 2)
    same = Images(x.to(memory_format=torch.channels_last), torch.tensor([0, 1, 0, 1])).fingerprint()
    assert same == Images(x).fingerprint() == Images(x.clone()).fingerprint()
    others = [x.flip(0), x[:3], x.view(4, 3, 4, 1), x.view(3, 4, 2, 2), x[:0], x ^ 1]
    assert len({same, *(Images(other).fingerprint() for other in others)}) == 7


@pytest.mark.parametrize(
    'part, names',
    [
        (
            'train',
            'train Train TRAINING train_images images-train Train2017 trainset seg_train trainval 01_train',
        ),
        ('val', 'val VALID Validation val2017 dev validation_set'),
        ('test', 'test Test TESTING test_set holdout hold-out Evaluation testB'),
        (None, 'trains trainers training_shoes testudo valley validity cat 0 été contest partrain untrained'),
    ],
)
def test_part_of(part, names):
    wrong = [name for name in names.split() if part_of(name) != part]
    assert not wrong


def test_part_of_ends():
    "A long name takes no long time"
    assert part_of('images' * 5000) is None and part_of('partset' * 5000 + '!') is None


def test_printable():
    text = printable('a\nb\x1b[2J\udce9\u2028é猫')
    assert text == r'a\nb\x1b[2J\udce9\u2028é猫' and text.encode() and printable('a b') == 'a b'


@pytest.mark.parametrize(
    'label, classes', [(2, 'ab'), (-1, 'ab'), (2_000_000_000, 'ab'), (2_000_000_000, '')]
)
def test_labels_of_no_class(label, classes):
    x = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    said = one_line(lambda: Images(x, torch.tensor([0, label]), tuple(classes)), ValueError, f'got {label}')
    assert ('a, b' in said) == bool(classes)


def test_defaults_of_torch_do_not_matter():
    "Another default device or type: the same images, splits and choices, on the CPU"

    def made():
        images, truth = scenes(3)
        part = images.select([2, 0])
        return images.pixels, truth['distance'].float(), *split([0, 0, 1, 1, 1]), *split(9), part.labels

    expected = made()
    torch.set_default_device('meta')
    torch.set_default_dtype(torch.float64)
    try:
        found = made()
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(expected, found))

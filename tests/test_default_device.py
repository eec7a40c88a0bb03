"Draws, masks, views and positions under another default device ('meta' stands for it) and default type"

import ast, contextlib, random
from pathlib import Path
import pytest, torch
import jepa_lit
from jepa_lit.backbones import ConvNet
from jepa_lit.encoder import ViT
from jepa_lit.ijepa import IJEPA
from jepa_lit.lejepa import LeJEPA, infer_width
from jepa_lit.masks import Random, Rasterized, SingleBlock, coverage, draw_places, trapezoid
from jepa_lit.normality import epps_pulley, healthy, quadrature, shapiro_wilk
from jepa_lit.patches import check_index, sincos_2d, take
from jepa_lit.plain import plain_masks
from jepa_lit.predictor import Predictor
from jepa_lit.sampler import MultiBlock, opposite_corners, rectangle
from jepa_lit.sigreg import SIGReg, sigreg
from jepa_lit.slices import directions
from jepa_lit.views import VIEWS, AugmentConfig, MultiCrop

FACTORIES = set(
    'empty ones zeros rand randn randint randperm arange linspace logspace eye full tensor'.split()
)


@contextlib.contextmanager
def default(device=None, dtype=None):
    old = torch.get_default_dtype()
    try:
        torch.set_default_device(device)
        torch.set_default_dtype(dtype or old)
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(old)


def g():
    return torch.Generator().manual_seed(0)


images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=g())
z = torch.randn(40, 6, generator=g())
method = LeJEPA(ConvNet(3, (4, 8)), slices=8, views=MultiCrop(local_views=1))
encoder = ViT(32, 8, 8, 1, 2)
ijepa = IJEPA(encoder, Predictor((4, 4), 8, 8, 1, 2))


def of_masks(sampler):
    return [t for t in sampler(5, g()) if t is not None]


def regularized():
    reg = SIGReg(8)
    values = [reg(z).detach() for _ in range(2)]
    reg.load_state_dict(reg.state_dict())
    return [*values, reg.state_dict()['_extra_state']]


CASES = {
    **{f'directions {s}': lambda s=s: directions(6, 9, g(), s) for s in ('gaussian', 'orthogonal', 'sobol')},
    **{f'views {n}': lambda n=n: MultiCrop(**VIEWS[n] | dict(local_views=1))(images, g()) for n in VIEWS},
    **{f'augment {n}': lambda n=n: AugmentConfig(n).augmenter(32)(images, g()) for n in ('crop', 'shift')},
    'sigreg': lambda: sigreg(z, directions(6, 9, g()), eps=1e-3, debiased=True),
    'SIGReg': regularized,
    'multi-block': lambda: of_masks(MultiBlock((6, 6))),
    'padded': lambda: of_masks(MultiBlock((6, 7), cut='pad', max_context=9)),
    'published': lambda: of_masks(MultiBlock((14, 14), published=True)),
    'tight': lambda: of_masks(MultiBlock((4, 4), min_keep=6)),
    'random': lambda: of_masks(Random((6, 6))),
    'block': lambda: of_masks(SingleBlock((6, 6))),
    'rasterized': lambda: of_masks(Rasterized((6, 6))),
    'plain': lambda: list(plain_masks(2, random.Random(0))[:2]),
    'places': lambda: torch.from_numpy(draw_places(3, [(2, 2)], (6, 6), generator=g())),
    'corners': lambda: torch.from_numpy(opposite_corners(5, MultiBlock((6, 6)).roomiest, g())),
    'rectangle': lambda: rectangle(torch.ones(3, 8, dtype=torch.bool, device='cpu').numpy(), 'first', 4)[0],
    'coverage': lambda: coverage(Random((6, 6))(9, g()).context, (6, 6)).float(),
    'trapezoid': lambda: trapezoid(9, 3).float(),
    'quadrature': lambda: list(quadrature()),
    'normality': lambda: [epps_pulley(z), shapiro_wilk(z), shapiro_wilk(z, francia=True)],
    'healthy': lambda: torch.as_tensor(healthy(), dtype=torch.float32, device='cpu'),
    'take': lambda: take(z[None], torch.randint(40, (1, 3), generator=g(), device='cpu')),
    'LeJEPA': lambda: [v for v in method.prepare(images, g())] + [method(method.prepare(images, g()))[0]],
    'IJEPA': lambda: ijepa(ijepa.prepare(images, g()))[0].detach(),
    'embed': lambda: ijepa.embed(images),
}


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('how', [dict(device='meta'), dict(dtype=torch.float64)])
def test_the_same_whatever_the_defaults_are(name, how):
    def run():
        method.sigreg.step = 0
        made = CASES[name]()
        return made if isinstance(made, list) else [made]

    expected = run()
    with default(**how):
        got = run()
    for a, b in zip(expected, got, strict=True):
        assert a.device == b.device and a.dtype == b.dtype and torch.equal(a, b)


def test_what_is_checked_or_sent_through_is_not_lost():
    with default('meta'):
        check_index(torch.zeros(2, 1, dtype=torch.int64, device='cpu'), 4, 2)
        with pytest.raises(ValueError, match='between 0 and 3, got 4'):
            check_index(torch.full((2, 1), 4, device='cpu'), 4, 2)
        assert infer_width(method.backbone, 32) == 8


def test_a_module_lies_where_its_positions_do():
    "As of all modules, weights and tables lie on the default device, so that they meet"
    with default('meta'):
        net = ViT(32, 8, 8, 1, 2)
        assert sincos_2d((2, 2), 8).is_meta
        assert {t.device.type for t in (*net.parameters(), *net.buffers())} == {'meta'}
    table = sincos_2d((3, 5), 8)
    with default(dtype=torch.float64):
        assert torch.equal(sincos_2d((3, 5), 8), table) and sincos_2d((3, 5), 8).dtype == torch.float32


def test_what_the_library_makes_says_where():
    "torch's factories are given a device, or a generator of the CPU meets another default device"
    bare = []
    for path in Path(jepa_lit.__file__).parent.glob('*.py'):
        if path.stem in ELSEWHERE:
            continue
        for call in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            factory = (
                isinstance(call, ast.Call)
                and isinstance(call.func, ast.Attribute)
                and call.func.attr in FACTORIES
                and ast.unparse(call.func.value) == 'torch'
            )
            if factory and 'device' not in {k.arg for k in call.keywords}:
                text = ast.unparse(call)
                if text not in ON_THE_DEFAULT:
                    bare.append(f'{path.name}:{call.lineno} {text}')
    assert not bare


ON_THE_DEFAULT = {  # a parameter, which lies with its module; and positions, which lie with theirs
    'torch.empty(1, 1, width)',
    'torch.empty(0)',
}
ELSEWHERE = set('cost bench data datasets files probes'.split())  # data: a context says it

"Recipes: what they refuse, what they build, what they cost, and their way through a file"

import json, sys, types
from dataclasses import asdict, fields, replace
import pytest, torch
from jepa_lit.datasets import SETS
from jepa_lit.backbones import BACKBONES, AnySize
from jepa_lit.cost import cost
from jepa_lit.recipes import (
    METHODS,
    PAPERS,
    RECIPES,
    IJEPARecipe,
    LeJEPARecipe,
    build,
    differences,
    from_toml,
    recipe,
    to_toml,
)
from jepa_lit.runs import Run

GRAY = (0.5,), (0.25,)
SMALL = dict(
    lejepa=dict(widths=(8, 16), hidden=16, out=8, slices=8),
    ijepa=dict(
        width=16, depth=1, heads=2, predictor_width=8, predictor_depth=1, predictor_heads=2, max_context=None
    ),
)
pytestmark = pytest.mark.usefixtures('unchecked')


@pytest.mark.parametrize('method', METHODS)
def test_every_data_set_has_a_recipe_that_takes_a_step(method):
    for name in SETS:
        r = recipe(name, method=method, batch=4, **SMALL[method])
        channels, size = (
            SETS[name]['channels'],
            32 if method == 'lejepa' else 64 if name == 'imagenette' else 32,
        )
        if method == 'lejepa':
            r = replace(r, global_views=2, local_views=int(name == 'cifar10'))
        m = build(r, size, (0.5,) * channels, (0.25,) * channels)
        loss, logs = m(
            m.prepare(
                torch.randint(0, 256, (4, channels, size, size), dtype=torch.uint8),
                torch.Generator().manual_seed(0),
            )
        )
        loss.backward()
        assert loss.isfinite() and 'prediction' in logs, name


@pytest.mark.parametrize('name', PAPERS)
def test_papers(name):
    "The published sizes, on the meta device: 630.8 M and 22.3 M for ViT-H/14, 303.1 M for ViT-L/14"
    r = recipe(name)
    told = cost(
        r
        if 'released' not in name
        else replace(
            r,
            batch=8,
            **(dict(depth=1, predictor_depth=1) if r.method == 'ijepa' else dict(backbone='vit_tiny')),
        )
    )
    if 'released' in name:
        assert set(differences(r, recipe(name.replace('_released', '')))) <= {
            'warmup',
            'decay_shape',
            'loss',
            'normalize',
            'views',
            'cut',
            'min_keep',
            'size',
            'weight_decay',
            'local_views',
            'out',
            'knots',
            't_max',
        }
    elif r.method == 'ijepa':
        assert told['weights']['encoder'] / 1e6 == pytest.approx(630.8, abs=0.5) and told['weights'][
            'predictor'
        ] / 1e6 == pytest.approx(22.3, abs=0.1)
        assert (r.batch, r.lr, r.weight_decay, r.final_weight_decay, r.momentum, r.size // r.patch) == (
            2048,
            1e-3,
            0.04,
            0.4,
            (0.996, 1.0),
            16,
        )
        assert r.final_lr * r.lr == pytest.approx(1e-6) and r.warmup * 300 == pytest.approx(
            40 if 'released' in name else 15
        )
        assert (
            told['images'] / 1_281_167 == pytest.approx(300, rel=0.002)
            and told['images'] == r.steps * r.batch
        )
        assert told['flops'] / (1200 * 3600) == pytest.approx(
            49e12, rel=0.3
        )  # operations a second in the published 1,200 hours of an A100: a sixth of its peak
    else:
        assert (
            told['weights']['backbone'] / 1e6 == pytest.approx(303.1, abs=0.5)
            and told['weights']['projector'] < 2e7
        )
        assert (
            (r.lamb, r.global_views, r.batch, r.lr, r.final_lr) == (0.05, 2, 512, 5e-4, 1e-3)
            and r.multicrop(r.size, r.patch).sizes(r.size) == [224, 98]
            and told['images'] / 1_281_167 == pytest.approx(100, rel=0.002)
        )
    assert told['state_bytes'] == 4 * (4 * told['trained'] + told['weights'].get('target', 0))
    tiny = replace(
        r,
        size=28 if r.method == 'lejepa' else 56,
        batch=4,
        **(
            dict(
                width=16,
                depth=1,
                heads=2,
                predictor_width=8,
                predictor_depth=1,
                predictor_heads=2,
                min_keep=None,
            )
            if r.method == 'ijepa'
            else dict(backbone='vit_tiny', hidden=8, local_size=14, slices=8, local_views=2)
        ),
    )
    m = build(tiny, tiny.size, (0.5,) * 3, (0.25,) * 3)  # a stand-in of the same shape takes a step
    loss, _ = m(
        m.prepare(
            torch.randint(0, 256, (4, 3, tiny.size, tiny.size), dtype=torch.uint8),
            torch.Generator().manual_seed(0),
        )
    )
    loss.backward()
    assert loss.isfinite()


@pytest.mark.parametrize(
    'name,channels', [('convnet', 1), ('vit_tiny', 1), ('vit_base', 3), ('resnet18', 1), ('resnet50', 3)]
)
def test_backbones_on_the_meta_device(name, channels):
    told = cost(recipe('digits', backbone=name, local_views=2), size=32, channels=channels)
    known = dict(vit_tiny=5.4, vit_base=85.1, resnet18=11.2, resnet50=23.5)
    if name in known:
        assert told['weights']['backbone'] / 1e6 == pytest.approx(known[name], rel=0.02)
    assert told['flops_per_image'] > 6 * told['weights']['projector']


def test_backbones_of_a_small_stem_keep_the_pictures_larger():
    x = torch.rand(2, 1, 32, 32)
    for stem, side in ((4, 1), (1, 4)):
        m = build(recipe('digits', backbone='resnet18', stem=stem), 32, *GRAY)
        seen = []
        m.backbone.layer4.register_forward_hook(lambda module, args, out: seen.append(out.shape[-1]))
        assert m.embed(x).shape == (2, 512) and seen == [side]


def test_timm():
    pytest.importorskip('timm')
    m = build(recipe('digits', backbone='timm:resnet18', local_views=1), 32, *GRAY)
    assert m.embed(torch.rand(2, 1, 32, 32)).shape == (2, 512)
    with pytest.raises(ValueError, match='did you mean resnet18'):
        build(recipe('digits', backbone='timm:resnet18x'), 32, *GRAY)


def test_timm_is_missing(monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name, *a: None if name == 'timm' else find(name, *a)
    )
    with pytest.raises(ValueError, match='pip install timm'):
        build(recipe('digits', backbone='timm:resnet18'), 32, *GRAY)


def test_any_size_resizes_its_positions():
    torch.manual_seed(0)
    net = AnySize(32, 4, 16, 1, 2)
    for h, w in ((32, 32), (16, 16), (48, 32), (4, 20)):
        assert net(torch.rand(2, 3, h, w)).shape == (2, h // 4 * (w // 4), 16)
    with pytest.raises(ValueError, match='divisible by the patch size 4'):
        net(torch.rand(2, 3, 30, 32))
    with pytest.raises(ValueError, match='with keep'):
        net(torch.rand(2, 3, 16, 16), torch.zeros(2, 1, dtype=torch.int64))


def everything():
    return [recipe(n, method=m) for n in SETS for m in METHODS] + [recipe(n) for n in PAPERS]


def test_toml_round_trip(tmp_path):
    odd = [
        recipe('digits', root='C:\\x "y"\n\tz\x00\x7f ü 😀 #'),
        recipe(method='ijepa', max_context=None, momentum=(0, 1), lr=1e-12),
        recipe(clip=1, weight_decay=0, widths=(8,)),
        recipe(backbone='timm:resnet18', tensorboard=True),
    ]
    for r in (*everything(), *odd):
        (tmp_path / 'r.toml').write_text(to_toml(r), encoding='utf-8')
        assert from_toml(tmp_path / 'r.toml') == r
    text = to_toml(recipe('digits'))
    assert (
        all(f'\n{f.name} = ' in '\n' + text for f in fields(LeJEPARecipe))
        and text.count('peak learning rate of AdamW') == 1
    )


def test_json_round_trip_through_a_run(tmp_path):
    for i, r in enumerate(
        [
            *everything(),
            recipe('stl10', backbone='resnet18'),
            recipe('imagenet_lejepa_vitl14', data='imagenette', backbone='resnet50'),
        ]
    ):
        assert Run.create(tmp_path / str(i), r).recipe == r


def test_toml_short_files(tmp_path):
    f = tmp_path / 'a.toml'
    f.write_text('lr = 1\n')
    assert from_toml(f) == recipe(lr=1)
    f.write_text('data = "fashion_mnist"\nmethod = "ijepa"\nmomentum = [0.9, 1]\n')
    assert from_toml(f, steps='7') == recipe('fashion_mnist', method='ijepa', momentum=(0.9, 1), steps=7)
    f.write_text('recipe = "imagenet_lejepa_vitl14"\ndata = "imagenette"\nbackbone = "vit_tiny"\n')
    assert set(differences(from_toml(f), recipe('imagenet_lejepa_vitl14'))) == {'data', 'backbone'}
    f.write_bytes(b'\xef\xbb\xbflr = 1e-3\r\n')  # as some editors write it
    assert from_toml(f).lr == 1e-3


@pytest.mark.parametrize(
    'text,expected',
    [
        ('bacth = 3', "did you mean batch"),
        ('lr = "fast"', 'expects float'),
        ('steps = 1.5', 'expects int'),
        ('steps = true', 'expects int'),
        ('compile = 1', 'expects bool'),
        ('widths = 8', 'whole numbers'),
        ('widths = [8, "a"]', 'whole numbers'),
        ('widths = [[8]]', 'whole numbers'),
        ('data = 3', 'data set'),
        ('recipe = 3', 'data set'),
        ('recipe = "imagenet_vit"', 'did you mean'),
        ('data = "shrads"', 'did you mean shards'),
        ('lr = 2020-01-01', 'expects float'),
        ('method = "ijpea"', 'did you mean ijepa'),
        ('method = "ijepa"\nlamb = .1', 'not TOML'),
        ('method = "ijepa"\nlamb = 0.1', 'belongs to method lejepa'),
        ('lr =', 'not TOML'),
        ('\x00', 'not TOML'),
        ('[run]\nlr = 1', 'unknown recipe key'),
        ('lr = -1', 'positive'),
        ('lr = nan', 'positive'),
        ('lr = inf', 'positive'),
        ('seed = -1', 'at least 0'),
        ('keep = 0', 'at least 1'),
        ('max_skipped = 0', 'at least 1'),
        ('probe_every = -1', 'at least 0'),
        ('average = 1.0', 'below 1'),
        ('memory_format = "nhwc"', 'unknown memory_format'),
        ('on_full = "go"', 'did you mean go on'),
        ('batch = 99999999999999999999', 'below 2**63'),
        ('clip = inf', 'finite'),
    ],
)
def test_toml_refuses(tmp_path, text, expected):
    f = tmp_path / 'a.toml'
    f.write_text(text)
    with pytest.raises(ValueError) as e:
        from_toml(f)
    assert expected in str(e.value) and 'a.toml' in str(e.value) and '\n' not in str(e.value), e.value


def test_toml_files_that_are_none(tmp_path):
    for path in (tmp_path / 'no.toml', tmp_path):
        with pytest.raises(FileNotFoundError, match='not found'):
            from_toml(path)
    (tmp_path / 'b.toml').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(ValueError, match='b.toml is not TOML'):
        from_toml(tmp_path / 'b.toml')


def test_python_3_10(monkeypatch, tmp_path):
    "Without tomllib it is tomli's turn, and without that a line says what to install"
    import importlib, importlib.util, tomllib

    find, load = importlib.util.find_spec, importlib.import_module
    (tmp_path / 'a.toml').write_text('lr = 1e-3')
    monkeypatch.setattr(
        importlib.util,
        'find_spec',
        lambda name, *a: name == 'tomli' if name in ('tomllib', 'tomli') else find(name, *a),
    )
    monkeypatch.setattr(
        importlib, 'import_module', lambda name, *a: tomllib if name == 'tomli' else load(name, *a)
    )
    assert from_toml(tmp_path / 'a.toml').lr == 1e-3
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name, *a: None if name in ('tomllib', 'tomli') else find(name, *a)
    )
    with pytest.raises(ValueError, match='pip install tomli'):
        from_toml(tmp_path / 'a.toml')


def test_ranges():
    for bad, words in (
        (dict(average=0.5, method='ijepa'), 'LeJEPA'),
        (dict(accumulate=2), 'I-JEPA'),
        (dict(warmup=1.0), 'below 1'),
        (dict(final_lr=2.0), r'\[0, 1\]'),
        (dict(momentum=(0.9, 0.95, 1.0), method='ijepa'), '2 numbers'),
        (dict(target_scale=(0.1, 2.0), method='ijepa'), r'\[0, 1\]'),
        (dict(local_size=0), 'at least 1'),
        (dict(stem=3), 'stem'),
        (dict(widths=()), 'widths'),
        (dict(patch=8), 'backbone vit'),
        (dict(backbone='resnet18', checkpoint=True), 'backbone vit'),
        (dict(backbone='vit_tiny', widths=(8,)), 'backbone convnet'),
        (dict(knots=2), 'at least 3'),
        (dict(t_max=0.0), 'positive'),
        (dict(clip=float('inf')), 'clip must be finite'),
        (dict(weight_decay=float('inf')), 'weight_decay must be finite, got inf'),
        (dict(weight_decay=float('nan')), 'finite'),
        (dict(seed=10**400), r'seed must be below 2\*\*63'),
        (dict(seed=-1), 'at least 0'),
        (dict(backbone='resnet19'), 'did you mean resnet18'),
        (dict(size=0), 'at least 1'),
    ):
        with pytest.raises(ValueError, match=words):
            recipe('digits', **bad)
    assert recipe('digits', average=0.99).average == 0.99 and recipe('digits', average='none').average is None


def test_named_fields_of_another_backbone_are_left_out():
    assert differences(recipe('stl10'), recipe('stl10', backbone='resnet18')) == dict(
        backbone=('convnet', 'resnet18'), widths=((64, 128, 256, 512), (64, 128, 256))
    )
    assert (
        recipe('imagenet_lejepa_vitl14', backbone='resnet50').patch == 4
        and recipe('imagenet_lejepa_vitl14', backbone='vit_base').patch == 14
    )
    assert all(set(r) <= {f.name for f in fields(METHODS[m])} for m in METHODS for r in RECIPES[m].values())


def test_build_is_a_function_of_the_seed():
    before = torch.get_rng_state()
    a, b = [build(recipe(seed=5), 32, *GRAY).state_dict() for _ in range(2)]
    assert all(torch.equal(a[k], b[k]) for k in a) and torch.equal(before, torch.get_rng_state())
    weights = [
        build(recipe(memory_format=f), 32, *GRAY).backbone.stages[1][0].conv1.weight
        for f in ('auto', 'contiguous')
    ]
    assert torch.equal(*weights) and [w.is_contiguous() for w in weights] == [False, True]

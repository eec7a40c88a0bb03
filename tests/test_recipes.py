"Recipes: what they refuse, what they build, what they cost, and their way through a file"

import json
import os
from dataclasses import replace
from pathlib import Path
import pytest, torch
from jepa_lit.backbones import BackboneConfig
from jepa_lit.cost import cost
from jepa_lit.datasets import SETS, DataConfig
from jepa_lit.encoder import EncoderConfig
from jepa_lit.recipes import (
    METHODS,
    PAPERS,
    RECIPES,
    IJEPARecipe,
    LeJEPARecipe,
    as_dict,
    build,
    convert_old,
    describe_fields,
    differences,
    from_toml,
    read_toml,
    recipe,
    recipe_digest,
    to_toml,
)
from jepa_lit.runs import Run
from jepa_lit.training import OptimConfig, RunConfig

GRAY = (0.5,), (0.25,)
SMALL = dict(
    lejepa=dict(backbone=dict(widths=(8, 16)), loss=dict(hidden=16, out=8, slices=8)),
    ijepa=dict(
        encoder=dict(width=16, depth=1, heads=2),
        predictor=dict(width=8, depth=1, heads=2),
        max_context=None,
    ),
)
pytestmark = pytest.mark.usefixtures('unchecked')


def take_a_step(made, size, channels):
    "The loss and the logs of one step of a fresh method"
    method = build(made, size, (0.5,) * channels, (0.25,) * channels)
    images = torch.randint(0, 256, (4, channels, size, size), dtype=torch.uint8)
    loss, logs = method(method.prepare(images, torch.Generator().manual_seed(0)))
    loss.backward()
    assert loss.isfinite()
    return logs


@pytest.mark.parametrize('method', METHODS)
def test_every_data_set_has_a_recipe_that_takes_a_step(method):
    for name in SETS:
        made = recipe(name, method=method, batch=4, **SMALL[method])
        size = 64 if method == 'ijepa' and name == 'imagenette' else 32
        if method == 'lejepa':
            made = recipe(made, global_views=2, local_views=int(name == 'cifar10'))
        assert 'prediction' in take_a_step(made, size, SETS[name]['channels']), name


ALIKE = 'warmup decay_shape name normalize cut min_keep size weight_decay local_views out knots t_max'.split()


@pytest.mark.parametrize('name', PAPERS)
def test_papers(name):
    "The published sizes, on the meta device: 630.8 M and 22.3 M for ViT-H/14, 303.1 M for ViT-L/14"
    r = recipe(name)
    small = (
        dict(encoder=dict(depth=1), predictor=dict(depth=1))
        if r.method == 'ijepa'
        else dict(backbone='vit_tiny')
    )
    told = cost(r if 'released' not in name else recipe(r, batch=8, **small))
    if 'released' in name:
        found = differences(r, recipe(name.replace('_released', '')))
        assert {k.split('.')[1] for k in found} <= set(ALIKE)
    elif r.method == 'ijepa':
        assert told['weights']['encoder'] / 1e6 == pytest.approx(630.8, abs=0.5)
        assert told['weights']['predictor'] / 1e6 == pytest.approx(22.3, abs=0.1)
        assert (r.run.batch, r.optim.lr, r.optim.weight_decay, r.optim.final_weight_decay) == (
            2048,
            1e-3,
            0.04,
            0.4,
        )
        assert (r.loss.momentum, r.data.size // r.encoder.patch) == ((0.996, 1.0), 16)
        assert r.optim.final_lr * r.optim.lr == pytest.approx(1e-6)
        assert r.optim.warmup * 300 == pytest.approx(15)
        assert told['images'] / 1_281_167 == pytest.approx(300, rel=0.002)
        assert told['images'] == r.run.steps * r.run.batch
        # operations a second in the published 1,200 hours of an A100: a sixth of its peak
        assert told['flops'] / (1200 * 3600) == pytest.approx(49e12, rel=0.3)
    else:
        assert told['weights']['backbone'] / 1e6 == pytest.approx(303.1, abs=0.5)
        assert told['weights']['projector'] < 2e7
        assert (r.loss.lamb, r.views.global_views, r.run.batch) == (0.05, 2, 512)
        assert (r.optim.lr, r.optim.final_lr) == (5e-4, 1e-3)
        assert r.views.multicrop(r.data.size, r.backbone.patch).sizes(r.data.size) == [224, 98]
        assert told['images'] / 1_281_167 == pytest.approx(100, rel=0.002)
    if r.method == 'ijepa' and 'released' in name:
        assert r.optim.warmup * 300 == pytest.approx(40)
    assert told['state_bytes'] == 4 * (4 * told['trained'] + told['weights'].get('target', 0))


@pytest.mark.parametrize('name', PAPERS)
def test_a_stand_in_of_the_same_shape_takes_a_step(name):
    r = recipe(name)
    if r.method == 'ijepa':
        r = recipe(r, size=56, batch=4, min_keep=None, **SMALL['ijepa'])
    else:
        r = recipe(r, size=28, batch=4, backbone='vit_tiny', hidden=8, local_size=14, slices=8, local_views=2)
    take_a_step(r, r.data.size, 3)


@pytest.mark.parametrize(
    'name,channels', [('convnet', 1), ('vit_tiny', 1), ('vit_base', 3), ('resnet18', 1), ('resnet50', 3)]
)
def test_backbones_on_the_meta_device(name, channels):
    told = cost(recipe('digits', backbone=name, local_views=2), size=32, channels=channels)
    known = dict(vit_tiny=5.4, vit_base=85.1, resnet18=11.2, resnet50=23.5)
    if name in known:
        assert told['weights']['backbone'] / 1e6 == pytest.approx(known[name], rel=0.02)
    assert told['flops_per_image'] > 6 * told['weights']['projector']


def everything():
    return [recipe(n, method=m) for n in SETS for m in METHODS] + [recipe(n) for n in PAPERS]


def test_toml_round_trip(tmp_path):
    odd = [
        recipe('digits', root='C:\\x "y"\n\tz\x00\x7f ü 😀 #'),
        recipe(method='ijepa', max_context=None, momentum=(0, 1), lr=1e-12),
        recipe(clip=1, weight_decay=0, widths=(8,)),
        recipe(backbone='timm:resnet18', compile=True),
    ]
    for r in (*everything(), *odd):
        (tmp_path / 'r.toml').write_text(to_toml(r), encoding='utf-8')
        assert from_toml(tmp_path / 'r.toml') == r
    text = to_toml(recipe('digits'))
    (tmp_path / 'r.toml').write_text(text)
    assert list(read_toml(tmp_path / 'r.toml')) == list(as_dict(recipe('digits')))
    assert text.count('peak learning rate of AdamW') == 1


def test_every_field_has_a_type_a_default_and_a_comment():
    for method in METHODS:
        rows = describe_fields(method)
        made = as_dict(recipe(method=method))
        assert [name for name, *_ in rows] == [f'{t}.{f}' for t in made if t != 'method' for f in made[t]]
        for name, kind, default, comment in rows:
            table, field = name.split('.')
            assert made[table][field] == default and kind and comment, name
    kinds = {name: kind for name, kind, *_ in describe_fields('lejepa')}
    assert kinds['optim.clip'] == 'float or none' and kinds['backbone.stem'] == '1|2|4'
    assert kinds['backbone.widths'] == 'int,...' and kinds['data.validate'] == 'bool'


def test_json_round_trip_through_a_run(tmp_path):
    more = [
        recipe('stl10', backbone='resnet18'),
        recipe('imagenet_lejepa_vitl14', data='imagenette', backbone='resnet50'),
    ]
    for i, r in enumerate([*everything(), *more]):
        assert Run.create(tmp_path / str(i), r).recipe == r


def test_toml_short_files(tmp_path):
    f = tmp_path / 'a.toml'
    f.write_text('lr = 1\n')
    assert from_toml(f) == recipe(lr=1)
    f.write_text(
        'data = "fashion_mnist"\nmethod = "ijepa"\n[loss]\nmomentum = [0.9, 1]\n[options]\nworkers = 3\n'
    )
    assert from_toml(f, steps='7') == recipe('fashion_mnist', method='ijepa', momentum=(0.9, 1), steps=7)
    f.write_text('recipe = "imagenet_lejepa_vitl14"\ndata = "imagenette"\nbackbone.name = "vit_tiny"\n')
    assert set(differences(from_toml(f), recipe('imagenet_lejepa_vitl14'))) == {'data.name', 'backbone.name'}
    f.write_text('[data]\nname = "fashion_mnist"\n[optim]\nlr = 1\n')
    assert from_toml(f, method='ijepa', lr='.5') == recipe('fashion_mnist', method='ijepa', lr=0.5)
    f.write_bytes(b'\xef\xbb\xbflr = 1e-3\r\n')  # as some editors write it
    assert from_toml(f).optim.lr == 1e-3


@pytest.mark.parametrize(
    'text,expected',
    [
        ('bacth = 3', "did you mean batch"),
        ('[run]\nbacth = 3', "did you mean run.batch"),
        ('lr = "fast"', "optim.lr='fast': expected float"),
        ('steps = 1.5', 'run.steps=1.5: expected int'),
        ('steps = true', 'expected int'),
        ('compile = 1', 'expected bool'),
        ('widths = 8', 'backbone.widths=8: expected array'),
        ('widths = [8, "a"]', 'expected int'),
        ('widths = [[8]]', 'expected int'),
        ('widths = []', 'length >= 1'),
        ('data = 3', 'data set'),
        ('run = 3', "unknown recipe key 'run'"),
        ('recipe = 3', 'data set'),
        ('recipe = "imagenet_vit"', 'did you mean'),
        ('data = "shrads"', 'did you mean shards'),
        ('recipe = "digits"\ndata = "shrads"', 'did you mean shards'),
        ('lr = 2020-01-01', 'expected float'),
        ('method = "ijpea"', 'did you mean ijepa'),
        ('method = "ijepa"\nlamb = .1', 'not TOML'),
        ('method = "ijepa"\nlamb = 0.1', 'belongs to method lejepa'),
        ('method = "ijepa"\n[backbone]\nstem = 1', 'belongs to method lejepa'),
        ('method = "ijepa"\nwidth = 8', "'width' is ambiguous: expected encoder.width or predictor.width"),
        ('lr =', 'not TOML'),
        ('lr = 1\nlr = 2', 'not TOML'),
        ('\x00', 'not TOML'),
        ('[run]\nlr = 1', 'unknown recipe key'),
        ('lr = -1', 'expected float > 0'),
        ('lr = nan', 'expected float > 0'),
        ('lr = inf', 'finite'),
        ('seed = -1', 'expected int >= 0'),
        ('average = 1.0', 'expected float < 1'),
        ('memory_format = "nhwc"', 'unknown run.memory_format'),
        ('decay_shape = "cosin"', 'did you mean cosine'),
        (
            'batch = 99999999999999999999',
            'run.batch=99999999999999999999: expected a finite number of at most 1,000,000',
        ),
        ('lr = 1\n[optim]\nlr = 2', 'optim.lr is given twice'),
        ('root = "\\ud800"', 'not TOML'),
        ('lr = ' + '[' * 5000, 'not TOML'),
        ('clip = inf', 'finite'),
    ],
)
def test_toml_refuses(tmp_path, text, expected):
    f = tmp_path / 'a.toml'
    f.write_text(text)
    with pytest.raises(ValueError) as e:
        from_toml(f)
    assert expected in str(e.value) and 'a.toml' in str(e.value) and '\n' not in str(e.value), e.value


def test_an_error_in_a_change_is_not_the_files(tmp_path):
    f = tmp_path / 'a.toml'
    f.write_text('lr = 1\n')
    with pytest.raises(ValueError, match='did you mean lamb') as e:
        from_toml(f, lamda=1)
    assert 'a.toml' not in str(e.value)


def test_toml_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match='not found'):
        from_toml(tmp_path / 'no.toml')
    (tmp_path / 'bytes').write_bytes(b'\xff\xfe\x00')
    (tmp_path / 'latin').write_bytes('root = "caf\xe9"'.encode('latin-1'))
    (tmp_path / 'loop').symlink_to('loop')
    os.mkfifo(tmp_path / 'pipe')
    for path in (tmp_path / 'bytes', tmp_path / 'latin', tmp_path / 'pipe', tmp_path, Path('/dev/null')):
        with pytest.raises(ValueError, match=f'{path} is not TOML'):
            from_toml(path)
    with pytest.raises((ValueError, OSError), match='loop'):
        from_toml(tmp_path / 'loop')


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'a.toml').write_text('lr = 1')
    assert from_toml('~/a.toml') == recipe(lr=1)


COUNTS = [
    (method, name)
    for method in METHODS
    for name, kind, *_ in describe_fields(method)
    if 'int' in kind and name.split('.')[-1] not in ('seed', 'split_seed', 'levels')
]


@pytest.mark.parametrize('method, name', COUNTS)
def test_no_count_fills_the_machine(method, name):
    "A million is refused by the field itself, or by the memory that its weights ask for"
    value = (10**9,) * 2 if name == 'backbone.widths' else 10**10
    with pytest.raises(ValueError, match=f'{name}=.*expected a finite number of at most') as e:
        recipe(method=method, **{name: value})
    assert '\n' not in str(e.value)


@pytest.mark.parametrize(
    'asked', [dict(hidden=10**6, layers=9), dict(out=10**6, hidden=10**5), dict(widths=(10**5,) * 3)]
)
def test_weights_that_do_not_fit_are_refused_before_they_are_made(asked):
    with pytest.raises(ValueError, match='weights of .* GB: expected at most half of the memory'):
        build(recipe(**asked), 32, *GRAY)
    build(recipe(), 32, *GRAY)


def test_a_field_that_nobody_reads_is_taken_back_where_it_was_not_asked_for():
    made = recipe('imagenet_lejepa_vitl14', local_views=0)
    assert made.views.local_size is None and recipe(**as_dict(made)) == made
    assert recipe('stl10', method='ijepa', masks='random').masks.max_context == 24
    assert recipe(backbone='timm:resnet18', local_views=2, local_size=14).views.local_size == 14


@pytest.mark.parametrize(
    'bad, words',
    [
        (dict(average=0.5, method='ijepa'), 'optim.average=0.5 is not read with method=ijepa'),
        (dict(accumulate=2), 'run.accumulate=2 is not read with method=lejepa'),
        (dict(warmup=1.0), r'optim.warmup=1.0: expected float < 1.0'),
        (dict(final_lr=2.0), 'optim.final_lr=2.0: expected float <= 1.0'),
        (dict(momentum=(0.9, 0.95, 1.0), method='ijepa'), 'length 2'),
        (dict(momentum='.9', method='ijepa'), 'length 2'),
        (dict(momentum='.9,1.2', method='ijepa'), '<= 1.0'),
        (dict(target_scale=(0.1, 2.0), method='ijepa'), '<= 1.0'),
        (dict(target_scale='a,b', method='ijepa'), "masks.target_scale='a,b': expected float"),
        (dict(masks='blok', method='ijepa'), 'did you mean block'),
        (dict(patchh='4', method='ijepa'), 'did you mean patch'),
        (dict(lamb='.1', method='ijepa'), "'lamb' belongs to method lejepa, not to ijepa"),
        (dict(predictor_width=8, method='ijepa'), 'did you mean predictor.width'),
        (dict(method='jepa'), 'did you mean'),
        (dict(local_size=0), '>= 1'),
        (dict(stem=3), 'stem'),
        (dict(widths=()), 'widths'),
        (dict(patch=8), 'backbone.patch=8 is not read with backbone.name=convnet'),
        (dict(backbone='timm:vit_tiny', checkpoint=True), 'not read with backbone.name=timm:vit_tiny'),
        (dict(backbone='vit_tiny', widths=(8,)), 'not read with backbone.name=vit_tiny'),
        (dict(local_size=14), 'views.local_size=14 is not read with views.local_views=0'),
        (dict(decay_shape='linear'), 'not read with optim.final_weight_decay=None'),
        (dict(method='ijepa', masks='random', n_targets=2), 'not read with masks.name=random'),
        (dict(method='ijepa', max_context=3, masks='block'), 'masks.max_context=3 is not read'),
        (dict(lr=1, optim=dict(lr=2)), 'optim.lr is given twice'),
        ({'run.seed': 1, 'seed': 2}, 'run.seed is given twice'),
        (dict(data='mnist', **{'data.name': 'digits'}), 'data.name is given twice'),
        (dict(knots=2), '>= 3'),
        (dict(t_max=0.0), '> 0'),
        (dict(clip=float('inf')), 'optim.clip=inf: expected a finite'),
        (dict(weight_decay=float('inf')), 'optim.weight_decay=inf: expected a finite'),
        (dict(weight_decay=float('nan')), 'optim.weight_decay=nan'),
        (dict(seed=10**400), 'at most 9,223,372,036,854,775,807'),
        (dict(seed=-1), '>= 0'),
        (dict(seed='one'), "run.seed='one': expected int"),
        (dict(size=''), None),
        (dict(backbone='resnet19'), 'did you mean resnet18'),
        (dict(size=0), '>= 1'),
        (dict(name='x'), "unknown recipe key 'name': did you mean"),
        ({'optim.lrr': 1}, 'did you mean optim.lr'),
    ],
)
def test_ranges(bad, words):
    if words is None:
        assert recipe('digits', **bad) == recipe('digits')
        return
    with pytest.raises((ValueError, TypeError), match=words) as e:
        recipe('digits', **bad)
    assert '\n' not in str(e.value)


def test_ways_to_say_a_change():
    made = recipe('digits', lr=1e-3, steps=20, widths=(8, 16))
    assert made == recipe('digits', optim=dict(lr=1e-3), run=dict(steps=20), backbone=dict(widths=[8, 16]))
    assert made == recipe('digits', lr='1e-3', steps='20', widths='[8, 16]')
    assert made == recipe('digits', **{'optim.lr': '1e-3', 'run.steps': '20', 'backbone.widths': '8, 16'})
    assert made == recipe('digits', optim=OptimConfig(lr=1e-3), run=RunConfig(steps=20), widths=(8, 16))
    assert made == LeJEPARecipe(
        optim=OptimConfig(lr=1e-3), run=RunConfig(steps=20), backbone=BackboneConfig(widths=(8, 16))
    )
    assert made == recipe(recipe('digits', steps=20, widths=(8, 16)), lr=1e-3)
    assert recipe('digits', average=0.99).optim.average == 0.99
    assert recipe('folder', levels='0,4095').data.levels == (0, 4095)
    assert recipe('folder', levels='none').data.levels is None
    assert recipe('digits', average='none').optim.average is None
    assert recipe('digits', root='123').data.root == '123' and recipe('digits', root='none').data.root is None
    assert recipe('digits', compile='TRUE').run.compile and not recipe('digits', compile='0').run.compile
    assert recipe(data='mnist').data == DataConfig('mnist')


def test_a_recipe_made_by_hand_is_checked_when_it_is_resolved():
    made = LeJEPARecipe(optim=OptimConfig(lr=-1.0))
    with pytest.raises(ValueError, match='optim.lr=-1.0'):
        recipe(made)
    with pytest.raises(ValueError, match='is for method lejepa, got ijepa'):
        recipe(LeJEPARecipe(), method='ijepa')


def test_named_fields_of_another_backbone_are_left_out():
    assert differences(recipe('stl10'), recipe('stl10', backbone='resnet18')) == {
        'backbone.name': ('convnet', 'resnet18'),
        'backbone.widths': ((64, 128, 256, 512), (64, 128, 256)),
    }
    assert recipe('imagenet_lejepa_vitl14', backbone='resnet50').backbone.patch == 4
    assert recipe('imagenet_lejepa_vitl14', backbone='vit_base').backbone.patch == 14
    assert recipe(recipe('stl10'), backbone='resnet18') == recipe('stl10', backbone='resnet18')


def test_differences_of_two_methods():
    found = differences(recipe(), recipe(method='ijepa'))
    assert found['method'] == ('lejepa', 'ijepa') and found['loss.lamb'] == (0.01, None)
    assert found['run.steps'] == (320, 4000) and 'run.seed' not in found


def test_the_digest_names_what_decides_the_weights():
    made = [r for r in everything()]
    assert len({recipe_digest(r) for r in made}) == len(set(made))
    assert recipe_digest(recipe(root='a')) == recipe_digest(recipe(root='b'))
    assert recipe_digest(recipe(lr=1e-3)) == recipe_digest(
        recipe(**json.loads(json.dumps(as_dict(recipe(lr=1e-3)))))
    )
    assert recipe_digest(recipe(split_seed=1)) != recipe_digest(recipe())


def test_recipes_of_the_committed_records_are_read():
    records = sorted((Path(__file__).parent.parent / 'results').glob('*/*/recipe.json'))
    assert len(records) > 10
    for path in records:
        flat = json.loads(path.read_text())
        made = convert_old(flat)
        assert (made.method, made.run.seed, made.data.split_seed) == tuple(
            flat[k] for k in ('method', 'seed', 'split_seed')
        )
        assert made == recipe(
            recipe('digits', method=made.method), seed=made.run.seed, split_seed=flat['split_seed']
        )
    with pytest.raises(ValueError, match='did you mean lamb'):
        convert_old(dict(method='lejepa', lamda=1))


def test_old_names_are_converted():
    made = convert_old(
        dict(
            data='stl10',
            method='ijepa',
            width=48,
            depth=2,
            heads=3,
            predictor_width=24,
            predictor_depth=1,
            predictor_heads=2,
            normalise=False,
            views='grey',
            masks='block',
            loss='l2',
            threads=1,
            keep=3,
        )
    )
    assert (made.data.name, made.masks.name, made.loss.name, made.views.name) == (
        'stl10',
        'block',
        'l2',
        'gray',
    )
    assert made.encoder == EncoderConfig(patch=8, width=48, depth=2, heads=3)
    assert (made.predictor.width, made.predictor.depth, made.loss.normalize) == (24, 1, False)


def test_named_recipes_name_only_fields():
    for method, named in RECIPES.items():
        for name in named:
            assert type(recipe(name, method=method)) is METHODS[method]
    assert replace(IJEPARecipe(), run=RunConfig(steps=1)).run.steps == 1


def test_build_is_a_function_of_the_seed():
    before = torch.get_rng_state()
    a, b = [build(recipe(seed=5), 32, *GRAY).state_dict() for _ in range(2)]
    assert all(torch.equal(a[k], b[k]) for k in a) and torch.equal(before, torch.get_rng_state())
    formats = [build(recipe(memory_format=f), 32, *GRAY) for f in ('auto', 'contiguous')]
    weights = [m.backbone.stages[1][0].conv1.weight for m in formats]
    assert torch.equal(*weights) and [w.is_contiguous() for w in weights] == [False, True]

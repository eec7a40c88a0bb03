"Weights of Meta, timm and transformers in and out: same input, same output, and one line for whatever does not fit"

import copy, json, os, pickle, re, warnings
from pathlib import Path
import pytest, torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
import jepa_lit.pretrained as pretrained
from jepa_lit.encoder import ViT, vit
from jepa_lit.ijepa import IJEPA
from jepa_lit.patches import sincos_2d
from jepa_lit.predictor import Predictor
from jepa_lit.pretrained import (
    STATISTICS,
    architecture,
    from_hf,
    hf_config,
    key_map,
    license,
    load_ijepa,
    load_predictor,
    positions_grid,
    processor,
    published_heads,
    timm_config,
    to_hf,
    to_meta,
    to_timm,
    translate,
)

TOL = dict(rtol=1e-5, atol=1e-5)  # float32's rounding through a few blocks; features are of size one
close = lambda a, b: torch.testing.assert_close(a, b, **TOL)
same = lambda a, b: a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

# dim, depth, heads, hidden, image, patch, channels
SHAPES = [
    (24, 1, 3, 40, (8, 16), 4, 3),
    (48, 3, 4, 192, (12, 12), 4, 3),
    (64, 2, 8, 100, (30, 15), 5, 1),
    (36, 2, 1, 36, (14, 14), 14, 3),
    (96, 4, 6, 419, (16, 64), 8, 4),
    (40, 2, 5, 160, (6, 21), 3, 2),
]
shapes = pytest.mark.parametrize('s', SHAPES, ids=str)


def pictures(s, b=2):
    return torch.randn(b, s[6], *s[4], generator=torch.Generator().manual_seed(1))


def shaken(model):
    "Weights of every size, biases and norms too, so that nothing is hidden by zeros, ones or symmetry"
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    return model.eval()


def ours(s):
    return shaken(ViT(s[4], s[5], s[0], s[1], s[2], s[3] / s[0], s[6]))


def hf(s, cls='IJepaModel', **kw):
    t = pytest.importorskip('transformers', reason='needs transformers')
    return shaken(
        getattr(t, cls)(
            t.IJepaConfig(**{**hf_config(ViT(s[4], s[5], s[0], s[1], s[2], s[3] / s[0], s[6])), **kw})
        )
    )


def timm(s, **kw):
    t = pytest.importorskip('timm.models', reason='needs timm')
    return shaken(
        t.VisionTransformer(**{**timm_config(ViT(s[4], s[5], s[0], s[1], s[2], s[3] / s[0], s[6])), **kw})
    )


@torch.no_grad()
def out(model, x):
    return (
        model(x).last_hidden_state
        if hasattr(model, 'config')
        else model.forward_features(x)
        if hasattr(model, 'forward_features')
        else model(x)
    )


def refuse(kind, has, f, *a, **k):
    with pytest.raises(kind) as e:
        f(*a, **k)
    assert type(e.value) is kind and '\n' not in str(e.value) and has in str(e.value), str(e.value)


# ---- transformers


@shapes
def test_from_transformers(s, tmp_path):
    model, x = hf(s), pictures(s)
    want = out(model, x)
    model.save_pretrained(tmp_path / 'one')
    model.save_pretrained(tmp_path / 'many', max_shard_size='20KB')
    torch.save(model.state_dict(), tmp_path / 'w.bin')
    for source in (model, tmp_path / 'one', tmp_path / 'one/model.safetensors', tmp_path / 'many'):
        close(out(load_ijepa(source), x), want)
    for source in (model.state_dict(), tmp_path / 'w.bin', load_file(tmp_path / 'one/model.safetensors')):
        got = load_ijepa(source, heads=s[2], img_size=s[4], grid_from=(s[4][0] // s[5], s[4][1] // s[5]))
        close(out(got, x), want)
        assert got.report.fits and not got.report.resized


@shapes
def test_to_transformers(s, tmp_path):
    net, x = ours(s), pictures(s)
    model = hf(s)
    t = pytest.importorskip('transformers')
    model.load_state_dict(to_hf(net))
    close(out(model, x), out(net, x))
    for version in (4, 5):  # both layouts as files, read by transformers itself
        d = tmp_path / str(version)
        t.IJepaConfig(**hf_config(net)).save_pretrained(d)
        save_file(to_hf(net, version), d / 'model.safetensors', {'format': 'pt'})
        close(out(t.IJepaModel.from_pretrained(d).eval(), x), out(net, x))
        assert same(load_ijepa(d).state_dict(), net.state_dict())


def test_classifier_of_transformers():
    s = SHAPES[1]
    model, x = hf(s, 'IJepaForImageClassification', num_labels=7), pictures(s)
    for source in (model, {f'module.{k}': v for k, v in model.state_dict().items()}):
        net = from_hf(source, heads=4)
        with torch.no_grad():
            close(model.classifier(net(x).mean(1)), model(x).logits)
        assert net.report.skipped == ('classifier.weight', 'classifier.bias')
    net = ours(s)
    model.ijepa.load_state_dict(to_hf(net))
    state = to_hf(net, prefix='ijepa.')
    assert not model.load_state_dict(state, strict=False).unexpected_keys


def test_masked_pooled_and_half(tmp_path):
    s = SHAPES[1]
    t = pytest.importorskip('transformers')
    model = t.IJepaModel(
        t.IJepaConfig(**hf_config(ours(s))), add_pooling_layer=True, use_mask_token=True
    ).eval()
    net = load_ijepa(model)
    assert set(net.report.skipped) == {'embeddings.mask_token', 'pooler.dense.weight', 'pooler.dense.bias'}
    close(out(net, pictures(s)), out(model, pictures(s)))
    for dtype in (torch.bfloat16, torch.float16):
        half = {k: v.to(dtype) for k, v in model.state_dict().items()}
        save_file(half, tmp_path / 'h.safetensors')
        assert same(
            load_ijepa(tmp_path / 'h.safetensors', heads=4).state_dict(),
            {k: v.float() for k, v in translate(half).items() if 'embeddings' not in k and 'pooler' not in k},
        )


def test_eps_is_taken_from_the_model():
    s = SHAPES[1]
    model, x = hf(s, layer_norm_eps=1e-2), pictures(s)
    close(out(load_ijepa(model), x), out(model, x))
    close(out(load_ijepa(model.state_dict(), heads=4, eps=1e-2), x), out(model, x))
    assert (out(load_ijepa(model, eps=1e-6), x) - out(model, x)).abs().max() > 1e-3
    assert hf_config(load_ijepa(model))['layer_norm_eps'] == 1e-2
    back = timm(s, norm_layer=timm_config(load_ijepa(model))['norm_layer'])
    back.load_state_dict(to_timm(load_ijepa(model)))
    close(out(back, x), out(model, x))


@pytest.mark.parametrize('size', [(24, 24), (12, 28), (8, 8), (40, 16)], ids=str)
def test_resized_as_transformers_does(size):
    s = SHAPES[1]
    net, model = ours(s), hf(s)
    model.load_state_dict(to_hf(net))
    x = torch.randn(2, 3, *size)
    got = load_ijepa(to_hf(net), heads=4, img_size=size)
    with torch.no_grad():
        close(got(x), model(x, interpolate_pos_encoding=True).last_hidden_state)
    assert got.grid == (size[0] // 4, size[1] // 4) and len(got.report.resized) == 1 and got.report.fits


# ---- timm


@shapes
def test_timm_both_ways(s, tmp_path):
    model, x, grid = timm(s), pictures(s), (s[4][0] // s[5], s[4][1] // s[5])
    torch.save(model.state_dict(), tmp_path / 't.pth')
    for source in (model, model.state_dict(), tmp_path / 't.pth'):
        close(out(load_ijepa(source, heads=s[2], grid_from=grid), x), out(model, x))
    net = ours(s)
    model.load_state_dict(to_timm(net))
    close(out(model, x), out(net, x))
    assert same(load_ijepa(model).state_dict(), net.state_dict())


def test_timm_head_and_antialias():
    s = SHAPES[1]
    model = timm(s, num_classes=5)
    assert load_ijepa(model).report.skipped == ('head.weight', 'head.bias')
    t = pytest.importorskip('timm.layers')
    close(
        load_ijepa(model, img_size=(20, 8), antialias=True).pos_embed,
        t.resample_abs_pos_embed(model.pos_embed, (5, 2), (3, 3), num_prefix_tokens=0).detach(),
    )


@pytest.mark.parametrize(
    'kw, has',
    [
        (dict(class_token=True, global_pool='token'), 'cls_token'),
        (dict(fc_norm=True), 'norm.weight'),
        (dict(qkv_bias=False), 'qkv.bias'),
        (dict(init_values=1.0), 'ls1.gamma'),
        (dict(qk_norm=True), 'q_norm'),
        (dict(reg_tokens=2), 'reg_token'),
        (dict(patch_size=(4, 2)), '4, 2'),
    ],
    ids=str,
)
def test_near_misses_of_timm(kw, has):
    refuse(ValueError, has, load_ijepa, timm(SHAPES[1], **kw))


# ---- Meta


def files(name):
    path = Path(__file__).parent / 'parity' / f'{name}.safetensors'
    if not path.exists():
        pytest.skip('no parity numbers')
    with safe_open(path, 'pt') as f:
        return path, {k: f.get_tensor(k) for k in f.keys()}, json.loads(f.metadata().get('config', '{}'))


@pytest.mark.parametrize('name', ['ijepa_0', 'ijepa_1'])
def test_published_numbers(name):
    "The encoder, its context and the predictor, as the published code computes them"
    path, t, config = files(name)
    heads = int(next(v for k, v in config.items() if k.endswith('heads') or k == 'num_heads'))
    encoder, predictor = load_ijepa(path, 'encoder', heads=heads), load_predictor(path, heads=heads)
    with torch.no_grad():
        close(encoder(t['images']), t['out.full'])
        z = encoder(t['images'], t['context'])
        close(z, t['out.context'])
        close(predictor(z, t['context'], t['targets']).flatten(0, 1), t['out.pred'])
    assert 'sine-cosine positions' in encoder.report.notes[-1] and 'sine-cosine' in predictor.report.notes[-1]
    load_ijepa(path, heads=heads)  # the target encoder


def checkpoint(s=SHAPES[1]):
    encoder = ours(s)
    predictor = shaken(Predictor(encoder.grid, s[0], 32, 2, 4))
    target = copy.deepcopy(encoder)
    with torch.no_grad():
        [p.mul_(0.9) for p in target.parameters()]
    return (
        encoder,
        predictor,
        target,
        {
            **to_meta(encoder, predictor, target),
            'opt': {'state': {0: {'exp_avg': torch.ones(3)}}, 'param_groups': [{'lr': 0.1}]},
            'scaler': None,
            'epoch': 3,
            'loss': 0.1,
            'lr': 0.1,
        },
    )


@pytest.mark.parametrize('zipped', [True, False])
def test_meta_checkpoint(zipped, tmp_path):
    encoder, predictor, target, outer = checkpoint()
    path = tmp_path / 'x.pth.tar'
    torch.save(outer, path, _use_new_zipfile_serialization=zipped)
    for source in (path, str(path), outer):
        assert same(load_ijepa(source, heads=4).state_dict(), target.state_dict()) and same(
            load_ijepa(source, 'encoder', heads=4).state_dict(), encoder.state_dict()
        )
        assert same(load_predictor(source, heads=4).state_dict(), predictor.state_dict())
    assert all(k.startswith('module.') for m in ('encoder', 'predictor', 'target_encoder') for k in outer[m])
    assert same(
        to_meta(encoder)['target_encoder'], to_meta(encoder)['encoder']
    ) and 'predictor' not in to_meta(encoder)


def test_flat_file(tmp_path):
    encoder, predictor, target, outer = checkpoint()
    save_file(
        {f'{m}.{k}': v for m in ('encoder', 'predictor', 'target_encoder') for k, v in outer[m].items()},
        tmp_path / 'f.safetensors',
    )
    assert same(load_ijepa(tmp_path / 'f.safetensors', heads=4).state_dict(), target.state_dict())
    assert same(load_predictor(tmp_path / 'f.safetensors', heads=4).state_dict(), predictor.state_dict())


def test_predictor_on_another_grid():
    _, predictor, _, outer = checkpoint()
    wide = load_predictor(outer, heads=4, grid=(3, 5), shared_context=True)
    assert (
        wide.grid == (3, 5)
        and wide.shared_context
        and wide.report.resized == ('predictor_pos_embed from 3x3 to 3x5',)
    )
    refuse(ValueError, 'heads=', load_predictor, outer)


def test_published_sizes():
    "Shapes alone, without the gigabytes"
    for name, size, patch, want in (
        ('huge', 224, 14, 16),
        ('huge', 448, 16, 16),
        ('giant', 224, 16, 16),
        ('base', 224, 16, 12),
    ):
        with torch.device('meta'):
            a = architecture(vit(name, size, patch).state_dict())
        assert published_heads(a['dim'], a['depth'], a['hidden']) == want and a['n'] == (size // patch) ** 2
        assert bool(license(a['dim'], a['depth'], a['hidden'], patch)) == (name != 'base')
    refuse(ValueError, 'heads=', published_heads, 192, 4, 768)


def test_license_is_shown(monkeypatch):
    s = SHAPES[1]
    state = to_timm(ours(s))
    monkeypatch.setitem(pretrained.RELEASED, (48, 3, 192, 4), 'ViT-test')
    with pytest.warns(UserWarning, match='CC BY-NC 4.0'):
        net = load_ijepa(state, heads=4)
    assert 'CC BY-NC' in repr(net.report)
    with pytest.warns(UserWarning, match='CC BY-NC 4.0'):
        load_ijepa(to_meta(ours(s)), heads=4)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load_ijepa(to_timm(ours(SHAPES[0])), heads=3)


# ---- what the weights do not say


@pytest.mark.parametrize('grid', [(1, 1), (4, 9), (9, 4), (6, 6), (36, 1), (2, 8), (16, 16)], ids=str)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_sine_positions_tell_their_grid(grid, dtype):
    assert positions_grid(sincos_2d(grid, 16)[None].to(dtype)) == (grid, True)


def test_trained_positions():
    p = torch.randn(1, 16, 8)
    assert (
        positions_grid(p) == ((4, 4), False)
        and positions_grid(p, (2, 8)) == ((2, 8), False)
        and positions_grid(p[:, :8], None, (2, 4)) == ((2, 4), False)
    )
    assert positions_grid(p, None, (5, 5)) == ((4, 4), False)
    for a in ((p, None, (2, 8)), (p[:, :8],), (p[:, :8], None, (3, 3)), (p, (3, 5))):
        refuse(ValueError, 'grid_from', positions_grid, *a)


def test_loading_draws_nothing_and_leaves_the_source_alone():
    s = SHAPES[1]
    net = ours(s)
    state = to_timm(net)
    kept = {k: v.clone() for k, v in state.items()}
    before = torch.get_rng_state()
    got = load_ijepa(state, heads=4)
    assert torch.equal(before, torch.get_rng_state()) and all(
        p.requires_grad and p.device.type == 'cpu' for p in got.parameters()
    )
    with torch.no_grad():
        [p.add_(1) for p in got.parameters()]
    assert same(state, kept)
    assert load_ijepa(state, heads=4, img_size=12).report.resized == () and torch.equal(
        load_ijepa(state, heads=4, img_size=12).pos_embed, net.pos_embed
    )


def test_writers_share_nothing(tmp_path):
    net = ours(SHAPES[1])
    for state in (to_timm(net), to_hf(net, 4), to_hf(net, 5)):
        save_file(state, tmp_path / 'x.safetensors')
        own = {p.data_ptr() for p in net.state_dict().values()}
        assert all(
            v.is_contiguous() and not v.requires_grad and v.data_ptr() not in own for v in state.values()
        )
    for version in (4, 5):
        assert sorted(n for names in key_map(3, version).values() for n in names) == sorted(
            to_hf(net, version)
        )


def test_processor(unchecked):
    net = ours((48, 1, 4, 96, (12, 12), 4, 3))
    x = torch.randint(0, 256, (2, 3, 20, 30), dtype=torch.uint8)
    assert processor(net)(x).shape == (2, 3, 12, 12)
    (m, s), (m2, s2) = (torch.tensor(STATISTICS[k]).view(2, 3, 1, 1) for k in ('training', 'hf'))
    close(processor(net)(x) * s + m, processor(net, 'hf')(x) * s2 + m2)
    refuse(ValueError, 'channels', processor, ours(SHAPES[2]))
    refuse(ValueError, 'training', processor, net, 'imagenet')


# ---- what does not fit


def test_report():
    s = SHAPES[1]
    state = to_timm(ours(s))
    del state['blocks.1.norm2.bias']
    state['odd'] = torch.ones(1)
    state['norm.weight'] = torch.ones(7)
    refuse(
        ValueError,
        'missing blocks.1.norm2.bias; unexpected odd; mismatched norm.weight (7,) for (48,)',
        load_ijepa,
        state,
        heads=4,
    )
    r = load_ijepa(state, heads=4, strict=False).report
    assert (r.missing, r.unexpected, len(r.mismatched), len(r.loaded), r.fits) == (
        ('blocks.1.norm2.bias',),
        ('odd',),
        1,
        3 * 12 + 5 - 2,
        False,
    )
    assert all(w in repr(r) for w in ('39 of 41', 'blocks.1.norm2.bias', 'odd', 'heads 4'))
    state = to_hf(ours(s))
    del state['layers.1.attention.k_proj.weight']
    refuse(ValueError, 'blocks.1.attn.qkv.weight', load_ijepa, state, heads=4)
    state = to_timm(ours(s))
    state['blocks.999999999.norm1.bias'] = torch.ones(48)
    refuse(ValueError, 'unexpected blocks.999999999', load_ijepa, state, heads=4)
    state = to_timm(ours(s))
    state['norm.bias'] = torch.zeros(48, dtype=torch.int8)
    refuse(ValueError, 'int8', load_ijepa, state, heads=4)


def test_wrong_dictionaries(unchecked):
    encoder, predictor, target, outer = checkpoint()
    refuse(ValueError, 'IJepaModel', from_hf, outer)
    refuse(ValueError, "'encoder' and 'target_encoder'", load_ijepa, outer, 'teacher')
    refuse(ValueError, "'encoder'", load_ijepa, {'encoder': outer['encoder']}, 'teacher')
    refuse(ValueError, 'encoder', load_ijepa, outer, 'predictor', heads=4)
    refuse(ValueError, 'predictor', load_ijepa, outer['predictor'])
    refuse(ValueError, "'predictor'", load_predictor, outer, 'encoder')
    for bad in (
        {},
        {'epoch': 3},
        {0: torch.ones(1)},
        {'a': torch.ones(2)},
        {'layers.x': torch.ones(1)},
        {
            'pos_embed': torch.ones(4),
            'patch_embed.proj.weight': torch.ones(4),
            'blocks.0.mlp.fc1.weight': torch.ones(4),
        },
    ):
        refuse(ValueError, '', load_ijepa, bad)
    refuse(TypeError, 'NoneType', load_ijepa, None)
    refuse(TypeError, 'Predictor', to_hf, predictor)
    refuse(TypeError, 'ViT', to_meta, encoder, encoder)
    refuse(ValueError, 'version=6', to_hf, encoder, 6)
    refuse(ValueError, '30x30', load_ijepa, encoder, img_size=30)
    refuse(ValueError, '5', load_ijepa, outer, heads=5)


def test_other_architectures():
    import torchvision

    refuse(ValueError, 'conv1.weight', load_ijepa, torchvision.models.resnet18())
    refuse(ValueError, 'class_embedding', load_ijepa, {'class_embedding': torch.ones(8)})
    refuse(ValueError, "'relu'", load_ijepa, hf(SHAPES[1], hidden_act='relu'))


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize('how', ['zip', 'legacy', 'pickle'])
def test_hostile_pickles_do_not_run(how, tmp_path):
    bad, path = (
        {'pos_embed': torch.ones(1, 4, 8), 'epoch': Hostile(tmp_path / 'pwned')},
        tmp_path / 'x.pth.tar',
    )
    if how == 'pickle':
        path.write_bytes(pickle.dumps(bad, protocol=2))
    else:
        torch.save(bad, path, _use_new_zipfile_serialization=how == 'zip')
    for f in (load_ijepa, load_predictor):
        refuse(ValueError, 'read', f, path)
    os.rename(path, tmp_path / 'pytorch_model.bin')
    refuse(ValueError, 'read', load_ijepa, tmp_path)
    assert not (tmp_path / 'pwned').exists()


# ---- layouts of wrappers, and weights that no training writes


WRAPPED = {
    'encoder.': 'encoder.{}',
    'a Lightning module': 'model.backbone.{}',
    'DDP within': 'net.module.{}',
    'torch.compile': '_orig_mod.{}',
    'all of them': 'module._orig_mod.student._fsdp_wrapped_module.backbone.{}',
}


@pytest.mark.parametrize('how', WRAPPED)
@pytest.mark.parametrize('layout', [to_timm, to_hf])
def test_a_prefix_is_found(how, layout, tmp_path):
    net = ours(SHAPES[1])
    state = {WRAPPED[how].format(k): v for k, v in layout(net).items()}
    if how != 'torch.compile':  # whose names begin at once
        state['queue'] = torch.ones(3)
    torch.save({'state_dict': state, 'epoch': 1}, tmp_path / 'x.ckpt')
    save_file(state, tmp_path / 'x.safetensors')
    for source in (state, tmp_path / 'x.ckpt', tmp_path / 'x.safetensors'):
        got = load_ijepa(source, heads=4)
        assert same(got.state_dict(), net.state_dict())


@pytest.mark.parametrize(
    'piece', ['_fsdp_wrapped_module', '_checkpoint_wrapped_module', '_orig_mod', 'module']
)
def test_pieces_inside_of_names(piece):
    net = ours(SHAPES[1])
    state = {k.replace('blocks.1.', f'blocks.1.{piece}.'): v for k, v in to_timm(net).items()}
    state = {k.replace('attn.', f'attn.{piece}.'): v for k, v in state.items()}
    assert same(load_ijepa(state, heads=4).state_dict(), net.state_dict())
    predictor = checkpoint()[1]
    state = {f'net.{k.replace(".mlp", f".{piece}.mlp")}': v for k, v in predictor.state_dict().items()}
    assert same(load_predictor(state, heads=4).state_dict(), predictor.state_dict())


def test_several_encoders_ask_for_a_prefix():
    a, b = to_timm(ours(SHAPES[1])), {k: v + 1 for k, v in to_timm(ours(SHAPES[1])).items()}
    both = {
        f'{who}.module.net.{k}': v
        for who, state in (('student', a), ('teacher', b))
        for k, v in state.items()
    }
    refuse(
        ValueError, "'student.net' and 'teacher.net': pass one of these as prefix=", load_ijepa, both, heads=4
    )
    assert same(load_ijepa(both, heads=4, prefix='teacher.net').state_dict(), b)
    assert same(load_ijepa(both, 'student', heads=4).state_dict(), a)
    refuse(ValueError, "'student.net'", load_ijepa, both, heads=4, prefix='net')
    twice = {**both, 'teacher.net.norm.bias': torch.zeros(48)}
    refuse(ValueError, 'two called', load_ijepa, twice, heads=4, prefix='teacher.net')
    own = IJEPA(ours(SHAPES[1]), Predictor(3, 48, 32, 2, 8))
    got = load_ijepa(own, prefix='target.model')
    assert same(got.state_dict(), own.target.model.state_dict()) and got.heads == 4  # not the predictor's


ODD = {
    'positions as one number': ('pos_embed', torch.zeros(1).expand(1, 10**10, 48)),
    'a width as one number': ('blocks.0.mlp.fc1.weight', torch.zeros(1).expand(10**10, 48)),
    'a shape without numbers': ('blocks.0.mlp.fc1.weight', torch.empty(10**9, 0)),
    'no channels': ('patch_embed.proj.weight', torch.empty(48, 0, 4, 4)),
    'no positions': ('pos_embed', torch.empty(1, 0, 48)),
    'two tables': ('pos_embed', torch.zeros(2, 9, 48)),
    'another width': ('blocks.0.mlp.fc1.weight', torch.zeros(192, 47)),
    'a number': ('patch_embed.proj.weight', torch.zeros(())),
    'four axes': ('pos_embed', torch.zeros(1, 9, 48, 2)),
    'integers': ('pos_embed', torch.zeros(1, 9, 48, dtype=torch.int64)),
    'truth values': ('norm.bias', torch.zeros(48, dtype=torch.bool)),
    'complex numbers': ('pos_embed', torch.zeros(1, 9, 48, dtype=torch.complex64)),
    'bytes': ('norm.weight', torch.ones(48).to(torch.float8_e4m3fn)),
    'nan': ('norm.weight', torch.full((48,), torch.nan)),
    'too large for float32': ('norm.weight', torch.full((48,), 1e300, dtype=torch.float64)),
    'sparse': ('norm.weight', torch.ones(48).to_sparse()),
    'on no device': ('norm.weight', torch.ones(48, device='meta')),
    'quantized': ('norm.weight', torch.quantize_per_tensor(torch.ones(48), 0.1, 0, torch.qint8)),
    'nested': ('norm.weight', torch.nested.nested_tensor([torch.ones(3), torch.ones(5)])),
    'overlapping': ('blocks.0.attn.proj.weight', torch.zeros(100).as_strided((48, 48), (1, 1))),
    'a name for a terminal': ('norm\n\x1b[2J', torch.ones(48)),
    'a long name': ('x' * 10**6, torch.ones(48)),
}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('strict', [True, False])
@pytest.mark.parametrize('odd', ODD)
def test_odd_tensors(odd, strict, tmp_path):
    "Each in a file and in memory: refused in one line, or left out and reported"
    name, tensor = ODD[odd]
    state = {**to_timm(ours(SHAPES[1])), name: tensor}
    torch.save(state, tmp_path / 'x')
    for source in (state, tmp_path / 'x'):
        try:
            got = load_ijepa(source, heads=4, strict=strict)
        except ValueError as e:
            assert str(e).isprintable() and len(str(e)) < 400, str(e)
        else:
            assert not strict and len(got.report.mismatched) == 1 and 'norm.' in got.report.mismatched[0]
            assert all(p.isfinite().all() for p in got.state_dict().values())


def test_more_blocks_than_weights(tmp_path):
    "Names cost little in a file, and blocks much in memory"
    state = to_timm(ours(SHAPES[1]))
    many = {f'blocks.{i}.norm1.bias': torch.ones(48) for i in range(3, 5000)}
    refuse(ValueError, 'blocks', load_ijepa, {**state, **many}, heads=4)
    few = {f'blocks.{i}.norm1.bias': torch.ones(48) for i in range(3, 900)}
    refuse(ValueError, 'missing', load_ijepa, {**state, **few}, heads=4)
    refuse(ValueError, 'quarter', load_ijepa, {**state, **few}, heads=4, strict=False)
    tied = {k: v if 'blocks' not in k else state[re.sub(r'\d+', '0', k, count=1)] for k, v in state.items()}
    torch.save(tied, tmp_path / 'tied.pth')
    refuse(ValueError, 'memory of their own', load_ijepa, tmp_path / 'tied.pth', heads=4)


@pytest.mark.parametrize(
    'q', [torch.zeros(48), torch.zeros(()), torch.zeros(48, 48, dtype=torch.int8)], ids=str
)
def test_query_and_key_that_do_not_go_together(q):
    state = to_hf(ours(SHAPES[1]))
    state['layers.1.attention.q_proj.weight'] = q
    refuse(ValueError, 'blocks.1.attn.qkv.weight', load_ijepa, state, heads=4)
    every = {k: torch.zeros(()) if 'layers.1.attention' in k else v for k, v in state.items()}
    refuse(ValueError, 'blocks.1.attn.qkv.weight', load_ijepa, every, heads=4)


@pytest.mark.parametrize(
    'config',
    [
        [],
        3,
        {'num_attention_heads': '4'},
        {'num_attention_heads': -4},
        {'num_attention_heads': 4.0},
        {'num_attention_heads': 4, 'layer_norm_eps': 'x'},
        {'num_attention_heads': 4, 'layer_norm_eps': float('nan')},
        {'num_attention_heads': 4, 'layer_norm_eps': None},
        {'num_attention_heads': 4, 'image_size': 0, 'patch_size': 0},
        {'num_attention_heads': 4, 'image_size': 'ab', 'patch_size': 4},
        {'num_attention_heads': 4, 'image_size': list(range(10**5)), 'patch_size': 4},
        {'num_attention_heads': 4, 'image_size': 10**30, 'patch_size': 1},
        {'hidden_act': 'x\ny' * 1000},
        '[' * 10**5,
    ],
    ids=lambda c: str(c)[:40],
)
def test_configurations_of_others(config, tmp_path, unchecked):
    save_file(to_hf(ours(SHAPES[1]), 4), tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(ValueError) as e:
        load_ijepa(tmp_path)
    assert str(e.value).isprintable() and len(str(e.value)) < 300, str(e.value)

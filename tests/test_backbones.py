"Backbones by name: widths, sizes, fewer channels, small stems, timm, and what is said where a name is wrong"

import sys
import msgspec, pytest, torch, torchvision
from jepa_lit.backbones import BACKBONES, AnySize, BackboneConfig, ConvNet, Residual
from jepa_lit.training import param_groups
from jepa_lit.views import local_side
from small import fresh

WIDTHS = dict(convnet=256, vit_tiny=192, vit_base=768, resnet18=512, resnet50=2048)


@pytest.mark.parametrize('name', BACKBONES)
@pytest.mark.parametrize('channels', [1, 3])
def test_every_name_builds_an_encoder_of_its_width(name, channels):
    with torch.device('meta'):
        net = BackboneConfig(name).encoder(32, channels)
        y = net.eval()(torch.rand(2, channels, 32, 32))
    assert y.shape[-1] == net.width == WIDTHS.get(name, net.width)


@pytest.mark.parametrize('stem, side', [(4, 1), (2, 2), (1, 4)])
def test_a_small_stem_keeps_the_maps_larger(stem, side):
    net, seen = BackboneConfig('resnet18', stem=stem).encoder(32, 1), []
    net.layer4.register_forward_hook(lambda module, args, out: seen.append(out.shape[-1]))
    assert net(torch.rand(2, 1, 32, 32)).shape == (2, 512) and seen == [side]


def test_timm():
    pytest.importorskip('timm')
    net = BackboneConfig('timm:resnet18').encoder(32, 1)
    assert net.width == 512 and net(torch.rand(2, 1, 32, 32)).shape == (2, 512)
    with pytest.raises(ValueError, match='did you mean resnet18'):
        BackboneConfig('timm:resnet18x').encoder(32, 1)


def test_timm_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(ValueError, match='pip install timm'):
        BackboneConfig('timm:resnet18').encoder(32, 1)


def test_any_size_resizes_its_positions():
    torch.manual_seed(0)
    net = AnySize(32, 4, 16, 1, 2)
    for h, w in ((32, 32), (16, 16), (48, 32), (4, 20)):
        assert net(torch.rand(2, 3, h, w)).shape == (2, h // 4 * (w // 4), 16)
    with pytest.raises(ValueError, match='divisible by the patch size 4'):
        net(torch.rand(2, 3, 30, 32))
    with pytest.raises(ValueError, match='with keep'):
        net(torch.rand(2, 3, 16, 16), torch.zeros(2, 1, dtype=torch.int64))


@pytest.mark.parametrize('how', [dict(), dict(widths=(8,), stem=1), dict(widths=(8, 16), stem=2, depth=3)])
def test_convnet_gives_the_mean_of_its_maps(how):
    torch.manual_seed(0)
    net = ConvNet(2, **how)
    x = torch.rand(3, 2, 5 * net.stride, 2 * net.stride)
    assert net.maps(x).shape == (3, net.width, 5, 2)
    torch.testing.assert_close(net.eval()(x), net.maps(x).mean((2, 3)))
    blocks = [m for m in net.modules() if isinstance(m, Residual)]
    assert len(blocks) == how.get('depth', 1) * len(how.get('widths', (0, 0, 0)))


@pytest.mark.parametrize(
    'wrong', [dict(stem=3), dict(widths=()), dict(depth=0), dict(channels=0), dict(widths=(8, 0))]
)
def test_a_convnet_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match='ConvNet') as e:
        ConvNet(**wrong)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize(
    'wrong', [dict(stem=3), dict(widths=[]), dict(widths=[8, 0]), dict(depth=0), dict(patch=0)]
)
def test_the_ranges_of_the_fields_are_their_types(wrong):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, BackboneConfig)


@pytest.mark.parametrize(
    'name, size, local, multiple',
    [
        ('convnet', 64, None, 4),
        ('vit_tiny', 64, None, 4),
        ('timm:resnet18', 64, None, 4),
        ('timm:vit_tiny_patch16_224', 64, None, 8),
        ('timm:vit_tiny_patch16_224', 64, 48, 8),
        ('timm:vit_small_patch14_dinov2', 224, None, 14),
        ('timm:swin_tiny_patch4_window7_224', 64, None, 4),
        ('timm:mixer_s16_224', 64, None, 64),
    ],
)
def test_local_views_fit_the_encoder(name, size, local, multiple):
    if name.startswith('timm:'):
        pytest.importorskip('timm', '1.0.20')
    config = BackboneConfig(name)
    assert config.fit(size, 3, local) == multiple
    with torch.device('meta'):
        net = config.encoder(size, 3).eval()
        for side in (size, local or local_side(size, multiple)):
            net(torch.empty(2, 3, side, side))


@pytest.mark.parametrize(
    'name, size, local, said',
    [
        ('vit_tiny', 30, None, 'views of 30 pixels do not fit vit_tiny: 28 or 32 would do'),
        ('vit_tiny', 32, 14, 'views of 14 pixels do not fit vit_tiny: 12 or 16 would do'),
        ('timm:vit_tiny_patch16_224', 100, None, '96 or 112 would do'),
        ('timm:vit_tiny_patch16_224', 64, 28, 'views of 28 pixels do not fit .*: 16 or 32 would do'),
        ('timm:mixer_s16_224', 64, 32, 'views of 32 pixels do not fit .*: 64 would do'),
        ('timm:efficientformer_l1', 64, None, '224 would do'),
    ],
)
def test_views_that_the_encoder_cannot_take(name, size, local, said):
    if name.startswith('timm:'):
        pytest.importorskip('timm', '1.0.20')
    with pytest.raises(ValueError, match=said) as e:
        BackboneConfig(name).fit(size, 3, local)
    assert '\n' not in str(e.value)


def test_asking_the_encoder_draws_nothing():
    pytest.importorskip('timm', '1.0.20')
    before = torch.get_rng_state()
    BackboneConfig('timm:vit_tiny_patch16_224').fit(48, 3)
    assert torch.equal(before, torch.get_rng_state())


def test_positions_class_tokens_and_what_a_module_names_have_no_weight_decay():
    timm = pytest.importorskip('timm')
    own = ['lejepa', 'ijepa']
    for kind in own:  # of ours, matrices and kernels and nothing else
        method = fresh(kind)
        decayed, others = (g['params'] for g in param_groups(method, 0.1))
        trained = [p for p in method.parameters() if p.requires_grad]
        assert [id(p) for p in decayed] == [id(p) for p in trained if p.ndim > 1]
        assert [id(p) for p in others] == [id(p) for p in trained if p.ndim < 2]

    nets = torch.nn.ModuleDict()
    with torch.device('meta'):
        for name in ('vit_tiny_patch16_224', 'swin_tiny_patch4_window7_224', 'xcit_nano_12_p16_224'):
            nets[name] = timm.create_model(name, num_classes=0)
        nets['torchvision'] = torchvision.models.vit_b_32()
    decayed, others = (g['params'] for g in param_groups(nets, 0.1))
    names = {id(p): name.split('.', 1)[1] for name, p in nets.named_parameters()}
    spared = {names[id(p)] for p in others if p.ndim > 1}
    assert {'pos_embed', 'cls_token', 'class_token', 'encoder.pos_embedding'} <= spared
    assert 'pos_embed.token_projection.weight' in spared  # by a pattern of xcit's
    assert all(
        any(k in n for k in ('pos_emb', 'token', 'position_bias_table', 'temperature')) for n in spared
    )
    assert any('relative_position_bias_table' in n for n in spared)
    assert len(decayed) + len(others) == len(list(nets.parameters()))

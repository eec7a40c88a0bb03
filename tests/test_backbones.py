"Backbones by name: widths, sizes, fewer channels, small stems, timm, and what is said where a name is wrong"

import sys
import msgspec, pytest, torch
from jepa_lit.backbones import BACKBONES, AnySize, BackboneConfig, ConvNet, Residual

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

"The convolution whose weight gradient is our own, against torch's in float64; and where it must not be used"

import copy
import pytest, torch
from torch import nn
from torch.nn.grad import conv2d_weight
from jepa_lit.convolution import Conv2d, columns, weight_gradient
from jepa_lit.backbones import ConvNet


def case(b, i, o, size, kernel, stride, padding, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, w = (
        torch.randn(b, i, *size, generator=g, dtype=torch.float64),
        torch.randn(o, i, *kernel, generator=g, dtype=torch.float64),
    )
    y = torch.conv2d(x, w, None, stride, padding)
    return x.to(dtype), w.to(dtype), torch.randn(y.shape, generator=g, dtype=torch.float64).to(dtype)


SHAPES = [
    (1, 1, 1, (1, 1), (1, 1), (1, 1), (0, 0)),
    (5, 3, 4, (7, 5), (3, 2), (2, 1), (1, 0)),
    (4, 2, 3, (2, 2), (3, 3), (1, 1), (1, 1)),
    (3, 2, 5, (9, 4), (5, 3), (4, 3), (2, 2)),
    (7, 3, 2, (4, 6), (1, 1), (2, 2), (0, 0)),
    (2, 4, 3, (3, 3), (3, 3), (3, 3), (0, 0)),
]


@pytest.mark.parametrize('mib', [8.0, 1e-4])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('shape', SHAPES)
def test_weight_gradient_in_double_precision(shape, layout, mib):
    x, w, g = case(*shape)
    kernel, stride, padding = shape[4:]
    x, g = x.to(memory_format=layout), g.to(memory_format=layout)
    mine = weight_gradient(x, g, kernel, stride, padding, mib=mib)
    assert mine.dtype == torch.float64 and mine.shape == w.shape
    torch.testing.assert_close(mine, conv2d_weight(x, w.shape, g, stride, padding), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('shape', SHAPES)
def test_columns_times_weights_is_the_convolution(shape):
    x, w, g = case(*shape)
    y = columns(x, *shape[4:]) @ w.permute(2, 3, 1, 0).flatten(0, 2)
    torch.testing.assert_close(
        y.view(g.shape[0], *g.shape[2:], g.shape[1]).permute(0, 3, 1, 2), torch.conv2d(x, w, None, *shape[5:])
    )


@pytest.mark.parametrize(
    'shape',
    [
        (256, 16, 32, (7, 7), (3, 3), (2, 2), (1, 1)),
        (256, 32, 32, (2, 2), (3, 3), (1, 1), (1, 1)),
        (64, 16, 32, (11, 11), (1, 1), (2, 2), (0, 0)),
    ],
)
def test_as_exact_as_torch_in_bfloat16(shape):
    x, w, g = case(*shape, dtype=torch.bfloat16)
    stride, padding = shape[5:]
    truth = conv2d_weight(x.double(), w.shape, g.double(), stride, padding)
    off = [
        (v.double() - truth).norm() / truth.norm()
        for v in (conv2d_weight(x, w.shape, g, stride, padding), weight_gradient(x, g, *shape[4:]))
    ]
    assert off[1] < 1.05 * off[0] and off[1] < 2.5e-3  # half a unit in the last of 8 bits, at most 1/512


def way(layer, x, half=True):
    with torch.autocast('cpu', torch.bfloat16, enabled=half):
        y = layer(x)
    return 'ours' if 'OwnGradient' in getattr(y.grad_fn, 'name', lambda: '')() else 'torch'


@pytest.mark.parametrize(
    'want, kw, size, half',
    [
        ('ours', dict(stride=2, padding=1), 12, True),
        ('torch', dict(stride=2, padding=1), 14, True),
        ('ours', dict(padding=1), 4, True),
        ('torch', dict(padding=1), 5, True),
        ('torch', dict(padding=1), 3, False),
        ('torch', dict(padding=1, groups=2), 3, True),
        ('torch', dict(padding=2, dilation=2), 3, True),
        ('torch', dict(padding='same'), 3, True),
        ('torch', dict(padding=1, bias=True), 3, True),
        ('torch', dict(padding=1, padding_mode='reflect'), 3, True),
    ],
)
def test_when(want, kw, size, half):
    layer = Conv2d(4, 4, 3, **dict(dict(bias=False), **kw))
    assert way(layer, torch.randn(2, 4, size, size), half) == want


def test_half_models_frozen_layers_and_no_grad():
    layer, x = Conv2d(4, 4, 3, 2, 1, bias=False), torch.randn(2, 4, 4, 4)
    assert (
        way(layer, x, half=False) == 'torch'
        and way(copy.deepcopy(layer).bfloat16(), x.bfloat16(), half=False) == 'ours'
    )
    with torch.no_grad():
        assert way(layer, x) == 'torch'
    layer.requires_grad_(False)
    y = layer(x.clone().requires_grad_())
    assert 'OwnGradient' not in y.grad_fn.name()
    with pytest.raises(RuntimeError, match='at least one dimension|size can.t be greater|Kernel size'):
        Conv2d(1, 1, 3, bias=False).bfloat16()(torch.zeros(1, 1, 2, 2).bfloat16())


def test_a_whole_network_follows_float32(monkeypatch):
    "Gradients of a network in bfloat16 with ours are as near to float32 as those without"
    import jepa_lit.convolution as c

    calls, real = [], c.weight_gradient
    monkeypatch.setattr(c, 'weight_gradient', lambda *a, **k: calls.append(a[2]) or real(*a, **k))
    torch.manual_seed(0)
    net, x = ConvNet(widths=(8, 16, 32)), torch.rand(64, 1, 28, 28)

    def grads(net, half):
        with torch.autocast('cpu', torch.bfloat16, enabled=half):
            z = net(x)
        z.float().tanh().sum(1).square().mean().backward()
        return torch.cat([p.grad.flatten() for p in net.parameters()])

    plain = copy.deepcopy(net)
    for m in plain.modules():
        if type(m) is Conv2d:
            m.__class__ = nn.Conv2d
    exact, ours, torchs = grads(copy.deepcopy(net), False), grads(net, True), grads(plain, True)
    off = [(v - exact).norm() / exact.norm() for v in (ours, torchs)]
    assert (
        sorted(map(tuple, calls)) == [(1, 1)] * 2 + [(3, 3)] * 4
    )  # of nine layers: those behind a stride, and the last two, on 4x4 and 2x2 places
    assert off[0] < 1.2 * off[1] < 0.2, off


def test_second_derivative():
    torch.manual_seed(0)
    layer, x = Conv2d(2, 3, 3, 2, 1, bias=False).bfloat16(), torch.randn(4, 2, 4, 4).bfloat16()

    def penalty(layer):
        layer.zero_grad()
        inp = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(layer(inp).float().tanh().sum(), inp, create_graph=True)
        slope.float().square().sum().backward()
        return layer.weight.grad.float()

    mine = penalty(layer)
    layer.__class__ = nn.Conv2d
    torch.testing.assert_close(mine, penalty(layer), rtol=0.05, atol=0.05 * mine.abs().max().item())


@pytest.mark.parametrize(
    'kernel, stride, padding, size', [(3, 2, 1, (4, 4)), (2, 1, 0, (3, 2)), (3, 1, 1, (2, 2))]
)
def test_an_empty_batch(kernel, stride, padding, size):
    layer = Conv2d(3, 5, kernel, stride, padding, bias=False)
    with torch.autocast('cpu', torch.bfloat16):
        y = layer(torch.zeros(0, 3, *size))
    y.float().sum().backward()
    assert not layer.weight.grad.any()
    zero = weight_gradient(
        torch.zeros(0, 3, *size),
        torch.zeros_like(y).detach().float(),
        (kernel, kernel),
        (stride, stride),
        (padding, padding),
    )
    assert zero.shape == layer.weight.shape and columns(torch.zeros(0, 3, *size), (2, 2)).shape == (0, 12)


def test_types_are_torchs_own():
    "What torch computes in another type, or refuses, so do we, whatever the size of the map"

    def outcome(layer, x, half=True):
        try:
            with torch.autocast('cpu', torch.bfloat16, enabled=half):
                return layer(x).dtype
        except RuntimeError as e:
            return type(e)

    for size in (4, 40):
        mine = Conv2d(3, 5, 3, 2, 1, bias=False)
        theirs = nn.Conv2d(3, 5, 3, 2, 1, bias=False)
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int64):
            for weights in (torch.float32, torch.float64, torch.bfloat16):
                for half in (True, False):
                    x = torch.ones(2, 3, size, size, dtype=dtype)
                    assert outcome(mine.to(weights), x, half) == outcome(theirs.to(weights), x, half), (
                        dtype,
                        weights,
                        half,
                        size,
                    )
    net = ConvNet(1, (8, 16, 16)).double()
    with torch.autocast('cpu', torch.bfloat16):
        assert net(torch.rand(3, 1, 16, 16, dtype=torch.float64)).dtype == torch.float64


def test_forward_derivative():
    import torch.autograd.forward_ad as fw

    torch.manual_seed(0)
    layer, x, dx = Conv2d(2, 3, 3, 2, 1, bias=False), torch.randn(4, 2, 4, 4), torch.randn(4, 2, 4, 4)

    def slope(layer):
        with fw.dual_level(), torch.autocast('cpu', torch.bfloat16):
            return fw.unpack_dual(layer(fw.make_dual(x, dx))).tangent

    mine = slope(layer)
    layer.__class__ = nn.Conv2d
    torch.testing.assert_close(mine, slope(layer))

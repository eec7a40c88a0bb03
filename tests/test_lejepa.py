"LeJEPA on other backbones and views, its errors and warnings, its average, and the README's ten lines"

import copy, importlib.util, re, warnings
from pathlib import Path
import pytest, torch, torchvision
from torch import nn
from jepa_lit.backbones import ConvNet
from jepa_lit.encoder import vit
from jepa_lit.preprocess import Preprocess
from jepa_lit.lejepa import LeJEPA, infer_width, pooled, prediction, projector
from jepa_lit.views import MultiCrop

root = Path(__file__).resolve().parent.parent


class Tokens(nn.Module):
    "A backbone that gives tokens (b n d)"

    def __init__(self):
        super().__init__()
        self.proj = nn.Conv2d(3, 12, 8, 8)

    def forward(self, x):
        return self.proj(x).flatten(2).mT


class Answer(nn.Module):
    "A backbone that answers with something else than a tensor"

    def __init__(self, how):
        super().__init__()
        self.f, self.how = nn.Linear(6, 4), how

    def forward(self, x):
        return self.how(self.f(x))


def timm_net(name, **how):
    if importlib.util.find_spec('timm') is None:
        pytest.skip('needs timm, which is not installed')
    import timm

    return timm.create_model(name, pretrained=False, num_classes=0, **how)


NETS = {
    'resnet18': (lambda: torchvision.models.resnet18(num_classes=40), 40),
    'mobilenet': (lambda: torchvision.models.mobilenet_v3_small(num_classes=24), 24),
    'convnext_tiny': (lambda: torchvision.models.convnext_tiny(num_classes=16), 16),
    'swin_t': (lambda: torchvision.models.swin_t(num_classes=16), 16),
    'vit': (lambda: vit('tiny', 32, 8), 192),
    'vit of 48': (lambda: vit('tiny', 48, 16), 192),
    'tokens': (Tokens, 12),
    'convnet': (lambda: ConvNet(3, (8, 16)), 16),
    'timm resnet': (lambda: timm_net('resnet10t'), 512),
    'timm vit': (lambda: timm_net('vit_tiny_patch16_224', img_size=32, patch_size=8), 192),
}


@pytest.mark.parametrize('name', NETS)
def test_backbones(name):
    "The width is found, nothing is touched on the way, gradients reach all weights, and the loss of one batch falls"
    make, width = NETS[name]
    torch.manual_seed(0)
    net = make()
    side = 48 if '48' in name else 32
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert infer_width(net) == width and net.training
    for k, v in net.state_dict().items():
        assert torch.equal(v, before[k]), k
    method = LeJEPA(
        net, projector(width, 16, 64), slices=16, views=MultiCrop(2, 1, global_size=side, local_size=side)
    )
    views = method.prepare(
        torch.randint(0, 256, (4, 3, 40, 40), dtype=torch.uint8), torch.Generator().manual_seed(0)
    )
    opt, losses = torch.optim.AdamW(method.parameters(), 1e-3), []
    for _ in range(4):
        loss, logs = method(views)
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert (
        min(losses[1:]) < losses[0]
        and set(logs) == {'prediction', 'sigreg'}
        and not any(v.requires_grad for v in logs.values())
    )
    unreached = [k for k, p in method.named_parameters() if p.grad is None or not p.grad.any()]
    assert unreached == [], unreached
    assert method.eval().embed(torch.rand(2, 3, side, side)).shape == (2, width)


def test_readme_example():
    "The ten lines of the README train: run as they stand, on random images"
    blocks = re.findall(r'```python\n(.*?)```', (root / 'README.md').read_text(), re.S)
    code = next(b for b in blocks if 'resnet18' in b and 'loader' in b)
    scope = dict(loader=[torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8) for _ in range(2)])
    exec(code, scope)
    assert scope['loss'].isfinite() and any(
        p.grad is not None and p.grad.abs().sum() > 0 for p in scope['net'].parameters()
    )


def test_convex_and_symmetric():
    torch.manual_seed(0)
    z = torch.randn(5, 7, 3, dtype=torch.float64)
    order = torch.randperm(7)
    torch.testing.assert_close(prediction(z, 2), prediction(z[:, order], 2))
    torch.testing.assert_close(prediction(z, 2), prediction(z[[1, 0, 4, 2, 3]], 2))  # views within their kind
    assert prediction(z, 5) <= prediction(z, 2)  # the center of all is nearest to all


@pytest.mark.parametrize('v,g', [(4, 2), (5, 3), (6, 6)])
def test_the_identity_that_holds(v, g):
    "Equation 5 is equation 6 and the spread of the global views, not equation 6"
    z = torch.randn(v, 9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(v))
    five = (z[:g, None] - z[None]).square().mean()
    torch.testing.assert_close(five, prediction(z, g) + prediction(z[:g]))
    assert five > 1.1 * prediction(z, g)


def vectors(v=3, b=16, k=6):
    return torch.randn(v, b, k, generator=torch.Generator().manual_seed(v))


def small(**options):
    torch.manual_seed(0)
    return LeJEPA(nn.Linear(6, 8), projector(8, 4, 16), slices=16, **options)


@pytest.mark.parametrize('lamb', [0.0, 0.2, 1.0])
def test_lambda_is_convex(lamb):
    m = small(lamb=lamb)
    loss, logs = m([vectors()])
    torch.testing.assert_close(loss.detach(), (1 - lamb) * logs['prediction'] + lamb * logs['sigreg'])


def test_groups_of_one_size_are_one_pass():
    m, calls = small().eval(), []
    m.backbone.register_forward_hook(lambda _, x, y: calls.append(len(x[0])))
    v = vectors(5)
    torch.testing.assert_close(m.loss([v[:2], v[2:]]), m.loss([v[:2], v[2:3], v[3:]]))
    assert calls == [80, 80]


def test_views_of_ones_own():
    "A function that gives one tensor, and one that ignores the generator"
    m = small(views=lambda x, g: x + 0.1 * torch.randn(3, *x.shape, generator=g))
    a, b = [m.prepare(vectors()[0], torch.Generator().manual_seed(s)) for s in (1, 1)]
    assert len(a) == 1 and a[0].shape == (3, 16, 6) and torch.equal(a[0], b[0]) and m.loss(a).isfinite()


def test_no_batch_norm():
    "Nothing in the method needs batch norm: training and evaluation agree, and the loss falls"
    torch.manual_seed(0)
    m = LeJEPA(nn.Sequential(nn.Linear(6, 32), nn.GELU()), nn.Linear(32, 4), slices=64)
    v, opt = vectors(), torch.optim.AdamW(m.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = m.loss([v])
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_modes_copies_and_states():
    m = small(average=0.9)
    m([vectors()])
    m.after_step(0)
    twin, other = copy.deepcopy(m), small(average=0.9)
    other.load_state_dict(m.state_dict())
    for x in (twin, other):
        assert torch.equal(x.eval().embed(vectors()[0]), m.eval().embed(vectors()[0])) and torch.equal(
            x.loss([vectors()]), m.loss([vectors()])
        )
    assert not any(k.startswith('average') for k in small().state_dict())


def net_with_norm():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))


def test_average_is_the_mean_then_exponential():
    torch.manual_seed(0)
    m = LeJEPA(net_with_norm(), projector(8, 4, 16), slices=16, average=0.75)
    opt, path = torch.optim.SGD([p for p in m.parameters() if p.requires_grad], 0.1), []
    for step in range(6):
        loss = m.loss([vectors()])
        opt.zero_grad()
        loss.backward()
        opt.step()
        m.after_step(step)
        path.append(m.backbone[0].weight.detach().clone())
        if step == 3:
            torch.testing.assert_close(m.average.model[0][0].weight, torch.stack(path).mean(0))
    old = torch.stack(path[:4]).mean(0)
    torch.testing.assert_close(
        m.average.model[0][0].weight, 0.75 * (0.75 * old + 0.25 * path[4]) + 0.25 * path[5]
    )
    for a, b in zip(m.average.model[0].buffers(), m.backbone.buffers()):
        assert torch.equal(a, b)  # running statistics are copied
    assert not torch.equal(m.average.model[0][0].weight, m.backbone[0].weight) and all(
        p.grad is None for p in m.average.parameters()
    )


def test_teacher_makes_the_centers():
    m = small(average=0.9, teacher=True).eval()
    v = vectors()
    with torch.no_grad():
        m.average.model[0].weight.add_(0.5)
        mu, z = [
            q(p(v.flatten(0, 1))).unflatten(0, (3, 16))
            for p, q in (m.average.model, (m.backbone, m.projector))
        ]
    torch.testing.assert_close(m([v[:2], v[2:]])[1]['prediction'], prediction(z, center=mu[:2].mean(0)))


SAID = {
    'one view': (lambda: small()([vectors(1)]), 'one view is its own center'),
    'no views': (lambda: small()([]), 'expected a list of views (v b ...), global first, got list of 0'),
    'a tensor': (
        lambda: small()(vectors()),
        'expected a list of views (v b ...), global first, got Tensor of 3',
    ),
    'other images': (
        lambda: small()([vectors(2), vectors(1, 15)]),
        'of the same b images, got torch.float32 (2, 16, 6), torch.float32 (1, 15, 6)',
    ),
    'integers': (
        lambda: small()([vectors().long()]),
        'expected floating-point views (v b ...) of the same b images, got torch.int64 (3, 16, 6)',
    ),
    'flat': (
        lambda: small()([vectors()[0]]),
        'views (v b ...) of the same b images, got torch.float32 (16, 6)',
    ),
    'prediction of one': (
        lambda: prediction(vectors(1)),
        'needs embeddings (v b d) of at least two views: one view is its own center, and there is nothing to '
        'predict; got shape (1, 16, 6)',
    ),
    'n_global': (lambda: prediction(vectors(), 4), 'expected from 1 to 3 global views, got n_global=4'),
    'lamb': (lambda: small(lamb=1.1), 'lamb is the weight of SIGReg and lies in [0, 1], got 1.1'),
    'lamb nan': (
        lambda: small(lamb=float('nan')),
        'lamb is the weight of SIGReg and lies in [0, 1], got nan',
    ),
    'views': (lambda: small(views=[1]), 'views is a function (inputs, generator) -> list of views, got list'),
    'teacher': (
        lambda: small(teacher=True),
        'teacher=True takes the centers from the average: pass its momentum as average=',
    ),
    'average': (lambda: small(average=-1.0), 'momentum in [0, 1], got -1.0'),
    'tuple': (
        lambda: LeJEPA(Answer(lambda y: (y,))),
        'expected a backbone that gives (b d), (b n d) or (b d h w), got tuple',
    ),
    'dict': (
        lambda: LeJEPA(Answer(lambda y: dict(y=y)), projector(4))([vectors()]),
        'expected a backbone that gives (b d), (b n d) or (b d h w), got dict',
    ),
    'no layer': (
        lambda: infer_width(nn.Identity()),
        'cannot infer the width of Identity: it has no convolution and no linear layer; pass projector=',
    ),
    'no size fits': (
        lambda: infer_width(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(7, 2))),
        'cannot infer the width of Sequential: mat1 and mat2 shapes cannot be multiplied',
    ),
    'scalar': (
        lambda: pooled(torch.zeros(())),
        'expected a backbone that gives (b d), (b n d) or (b d h w), got ()',
    ),
}


@pytest.mark.parametrize('case', SAID)
def test_errors_in_one_line(case, unchecked):
    call, said = SAID[case]
    with pytest.raises((ValueError, TypeError)) as e:
        call()
    assert said in str(e.value) and '\n' not in str(e.value)


def test_warnings():
    with pytest.warns(UserWarning, match='one global view'):
        small().loss([vectors(1), vectors(3)])
    with pytest.warns(UserWarning, match=r'LayerNorm of width 16.*0\.0014 times the batch'):
        LeJEPA(nn.Linear(6, 8), nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Dropout()))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        small().loss([vectors(2), vectors(3)])
        LeJEPA(nn.Linear(6, 8), nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4)))


@pytest.mark.parametrize(
    'images',
    [
        torch.full((2, 1, 32, 32), float('nan')),
        torch.zeros(2, 1, 32, 32, dtype=torch.int64),
        torch.zeros(2, 32, 32),
        torch.zeros(2, 2, 32, 32),
    ],
)
def test_bad_images(images, unchecked):
    method = LeJEPA(ConvNet(1, (8,)), slices=4, preprocess=Preprocess(32, (0.5,), (0.2,))).eval()
    with pytest.raises((ValueError, TypeError)) as e:
        method.embed(images)
    assert '\n' not in str(e.value)


def test_a_last_layer_of_zeros_is_said():
    net = torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=5)  # its head starts at zero
    with pytest.warns(UserWarning, match='same output for different inputs') as said:
        LeJEPA(net, views=MultiCrop(2, 2, global_size=32, local_size=32), slices=8)
    assert len(said) == 1 and '\n' not in str(said[0].message)
    net.heads = nn.Identity()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        LeJEPA(net, views=MultiCrop(2, 2, global_size=32, local_size=32), slices=8)


def test_a_waveform_network_that_does_not_pool(unchecked):
    net = nn.Sequential(nn.Conv1d(1, 6, 5, 2), nn.ReLU(), nn.Conv1d(6, 8, 5, 2))
    with pytest.raises(ValueError, match='pool over time') as e:
        infer_width(net)
    assert '\n' not in str(e.value)
    assert infer_width(nn.Sequential(net, nn.AdaptiveAvgPool1d(1), nn.Flatten())) == 8


def test_images_are_normalized_once_in_forward():
    "Views in [0, 1] with a preprocess give what normalized views give without one"
    torch.manual_seed(0)
    net, head, pre = ConvNet(1, (8,)), projector(8, 4, 16), Preprocess(None, (0.3,), (0.2,))
    views = [torch.rand(2, 6, 1, 16, 16), torch.rand(1, 6, 1, 8, 8)]
    with_it, without = [LeJEPA(net, head, slices=8, preprocess=p).eval() for p in (pre, None)]
    assert torch.equal(with_it.loss(views), without.loss([pre.normalize(v) for v in views]))

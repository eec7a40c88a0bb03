"What draws or counts in forward, when a checkpoint of activations runs that forward again"

import pytest, torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.utils.checkpoint import checkpoint
from jepa_lit.backbones import BackboneConfig, ConvNet
from jepa_lit.convolution import BatchNorm1d, BatchNorm2d
from jepa_lit.encoder import ViT
from jepa_lit.ijepa import IJEPA
from jepa_lit.lejepa import LeJEPA, projector
from jepa_lit.predictor import Predictor
from jepa_lit.sigreg import SIGReg
from jepa_lit.slices import take_ticket
from jepa_lit.views import MultiCrop


def direct(f, *args):
    return f(*args)


def again(reentrant):
    return lambda f, *args: checkpoint(f, *args, use_reentrant=reentrant)


class Wrapped(nn.Module):
    def __init__(self, reg):
        super().__init__()
        self.reg = reg
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, z):
        return self.reg((z * self.scale).tanh()).square()


drop = nn.Dropout(0.3)
SHAPES = dict(
    alone=lambda run, reg, a, b: run(reg, a),
    several=lambda run, reg, a, b: run(reg, a) + 2 * run(reg, b),
    same=lambda run, reg, a, b: run(reg, a) + 2 * run(reg, a) + 3 * run(reg, a),
    inside=lambda run, reg, a, b: run(lambda x, y: reg(x) + 2 * reg(x) + 3 * reg(y), a, b),
    nested=lambda run, reg, a, b: run(
        lambda x, y: run(reg, x) + 2 * run(lambda w: reg(w) + 2 * reg(w), y) + 3 * reg(x * y), a, b
    ),
    wrapped=lambda run, reg, a, b: run(wrapped := Wrapped(reg), a) + run(wrapped, b),
    between=lambda run, reg, a, b: run(lambda x: reg(drop(x)) + 2 * reg(drop(x)), a) + run(reg, drop(b)),
    some=lambda run, reg, a, b: run(reg, a) + 2 * reg(b),
    thrown_away=lambda run, reg, a, b: [run(reg, b), run(reg, a)][1],
    mixed=lambda run, reg, a, b: run(lambda x: checkpoint(reg, x, use_reentrant=False) + reg(x), a),
)


def train(shape, run, steps=3):
    "Losses, gradients, step and random state of a loop that draws its data from torch's generator"
    torch.manual_seed(1)
    reg = SIGReg(8)
    out = []
    for _ in range(steps):
        a, b = (torch.randn(20, 4).requires_grad_() for _ in range(2))
        loss = shape(run, reg, a, b)
        loss.backward()
        out += [loss.detach(), a.grad, b.grad]
    return out, reg.step, torch.rand(4)


@pytest.mark.parametrize('reentrant', [True, False])
@pytest.mark.parametrize('shape', SHAPES)
def test_sigreg_under_a_checkpoint_is_sigreg(shape, reentrant):
    values, step, drawn = train(SHAPES[shape], direct)
    others, other_step, other_drawn = train(SHAPES[shape], again(reentrant))
    assert step == other_step and torch.equal(drawn, other_drawn)  # and nobody else's draws have moved
    for x, y in zip(values, others):
        assert (x is None and y is None) or torch.allclose(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('kind', CheckpointImpl)
def test_sigreg_in_a_wrapper(kind):
    wrap = lambda f, *args: checkpoint_wrapper(f, kind)(*args)
    values, step, _ = train(SHAPES['several'], direct)
    others, other_step, _ = train(SHAPES['several'], wrap)
    assert step == other_step and all(map(torch.allclose, values, others))


@pytest.mark.parametrize('reentrant', [True, False])
@pytest.mark.parametrize('outside', [True, False])
def test_sigreg_compiled(outside, reentrant):
    torch._dynamo.reset()
    compiled = lambda f: torch.compile(f, backend='aot_eager')
    run = again(reentrant)
    values, step, _ = train(SHAPES['several'], direct)
    if outside:
        others = train(compiled(lambda _, *args: SHAPES['several'](run, *args)), None)
    else:
        others = train(lambda _, reg, *args: SHAPES['several'](run, compiled(reg), *args), None)
    assert step == others[1]
    for x, y in zip(values, others[0]):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('reentrant', [True, False])
def test_a_recomputation_that_cannot_be_known_is_refused(reentrant):
    z = torch.randn(20, 4).requires_grad_()
    loss = checkpoint(SIGReg(8), z, use_reentrant=reentrant, preserve_rng_state=False)
    with pytest.raises(RuntimeError, match='preserve_rng_state=True') as e:
        loss.backward()
    assert '\n' not in str(e.value)


def test_a_retained_graph_is_run_again_later():
    reg = SIGReg(8)
    z = torch.randn(20, 4).requires_grad_()
    loss = checkpoint(reg, z, use_reentrant=False)
    (first,) = torch.autograd.grad(loss, z, retain_graph=True)
    checkpoint(reg, z, use_reentrant=False).backward()
    torch.testing.assert_close(torch.autograd.grad(loss, z)[0], first)
    assert reg.step == 2


def test_no_checkpoint_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    reg = SIGReg(8)
    reg(torch.zeros(3, 4).requires_grad_()).backward()
    reg.eval()
    with torch.no_grad():
        reg(torch.zeros(3, 4))
    assert torch.equal(before, torch.get_rng_state())


def test_a_ticket_lies_where_the_seed_does():
    torch.manual_seed(5)
    seed, state = torch.initial_seed(), torch.get_rng_state()
    ticket = take_ticket()
    assert torch.initial_seed() == ticket % 2**64 != seed
    assert torch.equal(torch.get_rng_state()[8:], state[8:])


@pytest.mark.parametrize('reentrant', [True, False])
@pytest.mark.parametrize(
    'make',
    [
        lambda: ConvNet(1, (4, 8)),
        lambda: nn.Sequential(nn.Flatten(), projector(256, 4, 8)),
        lambda: BackboneConfig('resnet18', stem=1).encoder(16, 1),
        lambda: nn.Sequential(BatchNorm2d(1, momentum=None), nn.Flatten(), BatchNorm1d(256)),
        lambda: nn.Sequential(BatchNorm2d(1, track_running_stats=False), nn.Flatten()),
    ],
)
def test_running_moments_move_once(make, reentrant):
    x = torch.rand(6, 1, 16, 16).requires_grad_()
    nets = []
    for run in (direct, again(reentrant)):
        torch.manual_seed(0)
        net = make()
        for _ in range(2):
            run(net, x).square().sum().backward()
        nets.append(net)
    for a, b in zip(nets[0].state_dict().values(), nets[1].state_dict().values()):
        assert torch.equal(a, b)
    for a, b in zip(nets[0].parameters(), nets[1].parameters()):
        torch.testing.assert_close(a.grad, b.grad)


def lejepa(**how):
    views = MultiCrop(global_views=2, local_views=1)
    return LeJEPA(ConvNet(3, (4, 8)), projector(8, 4, 8, 2), views=views, slices=8, **how)


def ijepa():
    encoder = ViT(16, 4, 8, 2, 2)
    return IJEPA(encoder, Predictor((4, 4), 8, 8, 1, 2), regularizer=SIGReg(8), weight=0.1)


@pytest.mark.parametrize('reentrant', [True, False])
@pytest.mark.parametrize('make', [lejepa, lambda: lejepa(average=0.9, teacher=True), ijepa])
def test_whole_methods_under_a_checkpoint(make, reentrant):
    "The whole method, and its encoder alone: the same weights, buffers and averages after three steps"

    def train(way):
        torch.manual_seed(0)
        method = make()
        optimizer = torch.optim.SGD(method.parameters(), 0.1)
        run = again(reentrant)
        if way == 'part':
            part = getattr(method, 'backbone', getattr(method, 'encoder', None))
            forward = part.forward
            part.forward = lambda x, *rest: run(forward, x.requires_grad_(), *rest)
        for step in range(3):
            images = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8)
            batch = method.prepare(images, torch.Generator().manual_seed(step))
            if way == 'whole':
                nudge = torch.zeros((), requires_grad=True)  # reentrant needs an input with a gradient
                loss = run(lambda _: method(batch)[0], nudge)
            else:
                loss = method(batch)[0]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            method.after_step(step)
        return method.state_dict()

    plain = train('plain')
    for way in ('whole', 'part'):
        for (name, a), b in zip(plain.items(), train(way).values()):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=f'{way} {name}')

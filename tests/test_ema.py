"The moving target: its closed form, types, buffers, saving, sharding, errors"

import copy, io, math
import pytest, torch
from torch import nn
from jepa_lit.ema import EMA, half_life, momentum_schedule


class Net(nn.Module):
    "Tied weights, batch norm, a frozen parameter, integers, a buffer that is not saved"

    def __init__(self, width=4):
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(width, 4), nn.Linear(width, 4), nn.BatchNorm1d(4)
        if width == 4:
            self.b.weight = self.a.weight
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.steps = nn.Parameter(torch.tensor(0), requires_grad=False)
        self.register_buffer('seen', torch.tensor(0))
        self.register_buffer('scratch', torch.zeros(2), persistent=False)

    def forward(self, x):
        self.seen += 1
        self.scratch += 0.5
        return self.norm(self.b(self.a(x)))


def push(model, seed):
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=gen).to(p))


def flat(model):
    return torch.cat([p.detach().flatten().double() for p in model.parameters()])


@pytest.mark.parametrize(
    'momenta',
    [
        [0.9] * 30,
        [0.0, 1.0, 0.5, 1.0, 0.0, 0.3],
        [1.0] * 5,
        [0.0] * 5,
        [momentum_schedule(s, 40, 0.8) for s in range(40)],
    ],
    ids=['constant', 'ends', 'one', 'zero', 'schedule'],
)
def test_closed_form(momenta):
    model = Net().double()
    ema, states = EMA(model), [flat(model)]
    for i, m in enumerate(momenta):
        push(model, i)
        ema.update(model, m)
        states.append(flat(model))
    w = torch.tensor(
        [math.prod(momenta)] + [(1 - m) * math.prod(momenta[i + 1 :]) for i, m in enumerate(momenta)],
        dtype=torch.float64,
    )
    torch.testing.assert_close(w.sum(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(flat(ema.model), w @ torch.stack(states), atol=1e-12, rtol=1e-12)


def test_the_ends_are_exact():
    model = Net()
    ema, start = EMA(model), flat(model)
    push(model, 0)
    ema.update(model, 1.0)
    assert torch.equal(flat(ema.model), start)
    ema.update(model, 0)
    assert torch.equal(flat(ema.model), flat(model))


@pytest.mark.parametrize(
    'dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64]
)
def test_types(dtype):
    model = nn.Linear(3, 2, dtype=dtype)
    ema, old = EMA(model, 0.75), copy.deepcopy(model)
    with torch.no_grad():
        model.weight.add_(1)
    ema.update(model)
    assert ema.model.weight.dtype == dtype
    torch.testing.assert_close(
        ema.model.weight,
        old.weight.detach() + 0.25,
        atol=0.01 if dtype in (torch.float16, torch.bfloat16) else 1e-6,
        rtol=0,
    )


def test_a_float32_target_of_a_bfloat16_model_moves():
    "With momentum 0.996 the target in bfloat16 stands still; in float32 it arrives"
    model = nn.Linear(32, 32).bfloat16()
    low, high, start = EMA(model), EMA(model).float(), flat(model)
    with torch.no_grad():
        model.weight.mul_(1.25)
    for _ in range(1500):
        low.update(model, 0.996)
        high.update(model, 0.996)
    gap = lambda e: ((flat(e.model) - flat(model)).norm() / (start - flat(model)).norm()).item()
    assert gap(high) < 0.01 and gap(low) > 0.5 and {p.dtype for p in high.parameters()} == {torch.float32}


def test_mixed_types_in_one_model():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).bfloat16(), nn.Linear(3, 3).double())
    ema = EMA(model, 0.0)
    push(model, 0)
    ema.update(model)
    assert torch.equal(flat(ema.model), flat(model)) and [l.weight.dtype for l in ema.model] == [
        torch.float32,
        torch.bfloat16,
        torch.float64,
    ]


def test_buffers_and_integers_are_copied():
    model = Net()
    ema = EMA(model, 0.9)
    for _ in range(3):
        model(torch.randn(8, 4))
    with torch.no_grad():
        model.steps.fill_(7)
        model.frozen.fill_(2)
    ema.update(model)
    assert (
        ema.model.seen == 3
        and ema.model.norm.num_batches_tracked == 3
        and ema.model.steps == 7
        and torch.equal(ema.model.scratch, torch.full((2,), 1.5))
    )
    assert torch.equal(ema.model.norm.running_var, model.norm.running_var)
    torch.testing.assert_close(ema.model.frozen, torch.full((3,), 1.1))
    for a, b in zip([*ema.model.parameters(), *ema.model.buffers()], [*model.parameters(), *model.buffers()]):
        assert a.data_ptr() != b.data_ptr()


def test_tied_parameters_stay_tied_and_move_once():
    model = Net()
    ema, old = EMA(model, 0.9), model.a.weight.detach().clone()
    with torch.no_grad():
        model.a.weight.add_(1)
    ema.update(model)
    assert ema.model.a.weight is ema.model.b.weight
    torch.testing.assert_close(ema.model.a.weight, old + 0.1)


def test_nothing_else_is_touched():
    model = Net()
    model.eval()
    ema = EMA(model)
    model.train()
    before = torch.get_rng_state()
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    model(x).sum().backward()
    grads, values = [p.grad.clone() for p in model.parameters() if p.requires_grad], flat(model)
    ema.update(model, 0.5)
    assert torch.equal(before, torch.get_rng_state()) and torch.equal(flat(model), values)
    assert all(
        torch.equal(a, p.grad) for a, p in zip(grads, (p for p in model.parameters() if p.requires_grad))
    )
    assert (
        model.training
        and not ema.model.training
        and not any(p.requires_grad or p.grad is not None for p in ema.parameters())
    )
    assert not ema(x).requires_grad and not ema.model.a.weight.requires_grad


def test_no_gradient_through_the_target():
    "The loss reaches the encoder through the prediction alone; an optimizer of the whole leaves the target where it is"

    class Method(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Linear(4, 4)
            self.target = EMA(self.encoder, 0.9)

        def forward(self, x):
            return (self.encoder(x) - self.target(x + 1)).square().mean()

    m = Method()
    opt = torch.optim.AdamW(m.parameters(), 0.1)
    start = flat(m.target)
    m(torch.randn(8, 4)).backward()
    opt.step()
    assert torch.equal(flat(m.target), start) and not torch.equal(flat(m.encoder), start)
    m.target.update(m.encoder)
    torch.testing.assert_close(flat(m.target), 0.9 * start + 0.1 * flat(m.encoder))


def test_saved_and_restored():
    def run(model, ema, first, last):
        for s in range(first, last):
            push(model, s)
            model(torch.randn(8, 4, generator=torch.Generator().manual_seed(s)))
            ema.update(model, momentum_schedule(s, 10, 0.9))

    model = Net()
    ema = EMA(model)
    run(model, ema, 0, 5)
    file = io.BytesIO()
    torch.save([model.state_dict(), ema.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    run(model, ema, 5, 10)
    model2 = Net()
    ema2 = EMA(Net())
    model2.load_state_dict(saved[0])
    ema2.load_state_dict(saved[1])
    run(model2, ema2, 5, 10)
    assert all(torch.equal(a, b) for a, b in zip(ema.state_dict().values(), ema2.state_dict().values()))
    assert {k.split('.')[0] for k in ema.state_dict()} == {'model'} and not any(
        p.requires_grad for p in ema2.parameters()
    )
    twin = copy.deepcopy(ema)
    push(model, 11)
    ema.update(model, 0.5)
    assert not torch.equal(flat(twin), flat(ema))


def test_agrees_with_torch():
    "`swa_utils`, whose first call copies, with a constant decay"
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model = nn.Linear(5, 5)
    ours, theirs = EMA(model, 0.9), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    theirs.update_parameters(model)
    for i in range(20):
        push(model, i)
        ours.update(model)
        theirs.update_parameters(model)
    torch.testing.assert_close(flat(ours.model), flat(theirs.module), atol=1e-5, rtol=1e-5)


def test_models_without_parameters_and_on_meta():
    EMA(nn.Identity()).update(nn.Identity())
    EMA(nn.BatchNorm1d(3, affine=False)).update(nn.BatchNorm1d(3, affine=False))
    with torch.device('meta'):
        EMA(nn.Linear(2, 2)).update(nn.Linear(2, 2))


def test_sharded(tmp_path):
    "Under FSDP2 each process updates its own shard, and the numbers are those of one process"
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    class Method(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
            self.target = EMA(self.encoder)

        def forward(self, x):
            return (self.encoder(x) - self.target(x) + 1).square().mean()

    torch.manual_seed(0)
    plain = Method()
    sharded = copy.deepcopy(plain)
    x = torch.randn(8, 6)
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        fully_shard(sharded, mesh=init_device_mesh('cpu', (1,)))
        for m in (plain, sharded):
            opt = torch.optim.SGD(m.parameters(), 0.1)
            for _ in range(3):
                opt.zero_grad()
                m(x).backward()
                opt.step()
                m.target.update(m.encoder, 0.9)
        pairs = list(zip(plain.target.model.parameters(), sharded.target.model.parameters()))
        assert all(hasattr(b, 'full_tensor') for _, b in pairs)
        for a, b in pairs:
            torch.testing.assert_close(a.detach(), b.full_tensor().detach())
        ddp = nn.parallel.DistributedDataParallel(copy.deepcopy(plain))
        ddp(x).backward()
        ddp.module.target.update(ddp.module.encoder, 0.5)
    finally:
        dist.destroy_process_group()


def test_schedule():
    for shape in ('linear', 'cosine'):
        m = [momentum_schedule(s, 200, 0.9, 0.99, shape) for s in range(202)]
        assert (
            m[0] == 0.9
            and m[200] == m[201] == 0.99
            and all(a < b for a, b in zip(m[:200], m[1:201]))
            and abs(m[100] - 0.945) < 1e-12
        )
    assert {momentum_schedule(s, 50, 0.997, 0.997, k) for s in range(60) for k in ('linear', 'cosine')} == {
        0.997
    }
    assert (
        momentum_schedule(0, 1) == 0.996
        and momentum_schedule(1, 1) == 1
        and momentum_schedule(3, 10, 1, 0) == pytest.approx(0.7)
    )
    assert momentum_schedule(999, 1000, stretch=1.25) == pytest.approx(
        0.9992, abs=1e-5
    )  # the published default's last step
    assert momentum_schedule(999, 1000) == pytest.approx(0.999996, abs=1e-9)
    assert (
        half_life(0.5) == 1
        and half_life(0) == 0
        and half_life(1) == math.inf
        and half_life(0.996) == pytest.approx(172.94, abs=0.01)
    )


def test_errors(unchecked):
    ema = EMA(Net())
    other = Net()
    other.extra = nn.Linear(2, 2)
    for f, kind, words in (
        (lambda: EMA(Net(), 1.5), ValueError, '1.5'),
        (lambda: EMA(Net(), -1e-9), ValueError, r'\[0, 1\]'),
        (lambda: EMA(Net(), math.nan), ValueError, 'nan'),
        (lambda: EMA(Net(), None), TypeError, 'NoneType'),
        (lambda: EMA(torch.ones(2)), TypeError, 'Tensor'),
        (lambda: EMA(Net), TypeError, 'type'),
        (lambda: ema.update(Net(), 2), ValueError, '2'),
        (lambda: ema.update(Net(), True), TypeError, 'bool'),
        (lambda: ema.update(other), ValueError, 'extra'),
        (lambda: ema.update(Net(5)), ValueError, r'adds .*b.weight'),
        (lambda: EMA(nn.Linear(2, 3)).update(nn.Linear(3, 3)), ValueError, r'\(3, 2\)'),
        (lambda: EMA(nn.LayerNorm(3)).update(nn.BatchNorm1d(3)), ValueError, 'running_mean'),
        (lambda: half_life('a'), TypeError, 'str'),
        (lambda: momentum_schedule(0, 0), ValueError, 'steps=0'),
        (lambda: momentum_schedule(-1, 3), ValueError, 'step=-1'),
        (lambda: momentum_schedule(0, 3, 2), ValueError, '2'),
        (lambda: momentum_schedule(0, 3, shape='log'), ValueError, 'log'),
        (lambda: momentum_schedule(0, 3, stretch=0), ValueError, 'stretch'),
    ):
        with pytest.raises(kind, match=words) as e:
            f()
        assert '\n' not in str(e.value)
    old = flat(ema.model)
    with pytest.raises(ValueError):
        ema.update(other)
    assert torch.equal(flat(ema.model), old)  # refused before anything moved

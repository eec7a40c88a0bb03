"SIGReg in other types, shapes and numbers of processes than the chapter shows"

import copy
import pytest, torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from jepa_lit.normality import epps_pulley
from jepa_lit.sigreg import SIGReg, sigreg
from jepa_lit.slices import directions
from conftest import need


@pytest.mark.parametrize('knots,t_max', [(3, 1.0), (17, 3.0), (41, 5.0)])
@pytest.mark.parametrize('shape', [(2, 1), (7, 3), (33, 128)])
def test_equals_the_mean_of_epps_pulley(shape, knots, t_max):
    g = torch.Generator().manual_seed(0)
    z = torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_()
    a = directions(shape[1], 5, g).double()
    fast, slow = sigreg(z, a, knots, t_max), epps_pulley(z @ a, knots, t_max).mean()
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(fast, z)[0], torch.autograd.grad(slow, z)[0], rtol=1e-10, atol=1e-12
    )


def test_float32_is_close_to_float64():
    g = torch.Generator().manual_seed(0)
    z, a = torch.randn(2048, 64, generator=g), directions(64, 256, g)
    exact = sigreg(z.double(), a.double())
    assert abs(sigreg(z, a) - exact) / exact < 1e-5


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_short_floats_are_computed_in_float32(dtype):
    g = torch.Generator().manual_seed(0)
    z, a = torch.randn(500, 8, generator=g).to(dtype), directions(8, 16, g)
    assert sigreg(z, a).dtype == torch.float32
    torch.testing.assert_close(sigreg(z, a), sigreg(z.float(), a))
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(sigreg(z, a), sigreg(z.float(), a))


def test_directions_follow_seed_and_step():
    z = torch.randn(64, 8)
    a, b, c = SIGReg(8, seed=1), SIGReg(8, seed=1), SIGReg(8, seed=2)
    one = [a(z).item() for _ in range(3)]
    b.load_state_dict({**b.state_dict(), '_extra_state': torch.tensor(2)})
    assert b(z).item() == one[2] and len(set(one)) == 3 and c(z).item() != one[0]


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(eps=1e-3),
        dict(debiased=True),
        dict(times_n=False),
        dict(eps=0.1, debiased=True, times_n=False),
    ],
)
def test_views_layout_and_odd_sizes(options):
    g = torch.Generator().manual_seed(0)
    z, a = torch.randn(3, 37, 13, generator=g, dtype=torch.float64), directions(13, 11, g).double()
    value = sigreg(z, a, 9, 2.5, **options)
    torch.testing.assert_close(
        value, torch.stack([sigreg(v, a, 9, 2.5, **options) for v in z]).mean(), rtol=1e-12, atol=1e-12
    )
    strided = (
        z.permute(2, 0, 1).contiguous().permute(1, 2, 0).requires_grad_()
    )  # the same numbers, another layout
    assert not strided.is_contiguous()
    torch.testing.assert_close(sigreg(strided, a, 9, 2.5, **options), value, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(sigreg(z, a, 9, 2.5, **options), value)
    with torch.inference_mode():
        torch.testing.assert_close(sigreg(z, a, 9, 2.5, **options), value)
    torch.autograd.gradcheck(
        lambda y: sigreg(y, a, 9, 2.5, **{**options, 'eps': None}), strided, fast_mode=True
    )


def test_pieces_that_do_not_fit_the_cache_make_no_difference():
    "More slices and views than one piece holds, the last piece ragged"
    g = torch.Generator().manual_seed(0)
    z, a = (
        torch.randn(2, 3001, 4, generator=g, dtype=torch.float64).requires_grad_(),
        directions(4, 53, g).double(),
    )
    slow = torch.stack([epps_pulley(v @ a).mean() for v in z]).mean()
    torch.testing.assert_close(sigreg(z, a), slow, rtol=1e-11, atol=0)
    torch.testing.assert_close(
        *(torch.autograd.grad(f, z)[0] for f in (sigreg(z, a), slow)), rtol=1e-9, atol=1e-13
    )


def test_second_order_and_functional_gradients():
    g = torch.Generator().manual_seed(0)
    z, a = torch.randn(9, 4, generator=g, dtype=torch.float64).requires_grad_(), directions(4, 5, g).double()
    slow = torch.autograd.grad(epps_pulley(z @ a).mean(), z, create_graph=True)[0]
    fast = torch.autograd.grad(sigreg(z, a), z, create_graph=True)[0]
    torch.testing.assert_close(
        *(torch.autograd.grad(x.square().sum(), z)[0] for x in (fast, slow)), rtol=1e-9, atol=1e-12
    )
    torch.testing.assert_close(
        torch.func.grad(lambda y: sigreg(y, a, check=False))(z.detach()),
        slow.detach(),
        rtol=1e-10,
        atol=1e-12,
    )


def test_state_returns_with_the_model(tmp_path):
    model = nn.ModuleDict(dict(net=nn.Linear(8, 4), reg=SIGReg(6, seed=5)))
    z = torch.randn(20, 4)
    for _ in range(3):
        model['reg'](z)
    torch.save(model.state_dict(), tmp_path / 'state.pt')
    again = nn.ModuleDict(dict(net=nn.Linear(8, 4), reg=SIGReg(6, seed=5)))
    again.load_state_dict(torch.load(tmp_path / 'state.pt', weights_only=True))
    assert again['reg'].step == 3 and all(again['reg'](z) == model['reg'](z) for _ in range(2))


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_what_is_not_finite_is_a_bad_value_and_a_failed_computation(bad, unchecked):
    z = torch.zeros(5, 3)
    z[2, 1] = bad
    for kind in (ValueError, FloatingPointError):
        with pytest.raises(kind, match='got 1 NaN or infinite values of 15'):
            SIGReg(4)(z)
    assert not sigreg(z, directions(3, 4), check=False).isfinite()


@pytest.mark.parametrize(
    'wrong',
    [
        dict(slices=2.5),
        dict(slices=True),
        dict(knots=3.0),
        dict(t_max=float('nan')),
        dict(t_max=0),
        dict(eps=-1.0),
        dict(eps='small'),
        dict(sampler='halton'),
    ],
)
def test_bad_settings_are_refused_at_construction(wrong, unchecked):
    with pytest.raises(ValueError, match='.') as e:
        SIGReg(**wrong)
    assert '\n' not in str(e.value)


@pytest.mark.slow
def test_compiled(tmp_path):
    "The module and the function, forward and backward; some minutes"
    need('g++')
    g = torch.Generator().manual_seed(0)
    z, a = torch.randn(2, 130, 24, generator=g).requires_grad_(), directions(24, 40, g)
    for fast, slow in (
        (torch.compile(sigreg)(z, a), sigreg(z, a)),
        (torch.compile(SIGReg(16))(z), SIGReg(16)(z)),
    ):
        torch.testing.assert_close(fast, slow, rtol=2e-6, atol=0)
        torch.testing.assert_close(
            *(torch.autograd.grad(x, z)[0] for x in (fast, slow)), rtol=1e-4, atol=1e-7
        )


# several processes -------------------------------------------------------------------------------------------------

PARTS = {
    1: (11,),
    2: (5, 11),
    3: (3, 9, 4),
    4: (1, 8, 0, 6),
}  # rows of each process; one of them may have none
OPTIONS = [dict(), dict(eps=1e-2), dict(debiased=True, times_n=False)]


def _net(dtype):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)).to(dtype)


def _rows(n, dtype):
    return torch.randn(n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(n)).to(dtype)


def _grads(net):
    return torch.cat([p.grad.flatten() for p in net.parameters()])


def _apart(a, b):
    return ((a - b).norm() / b.norm()).item()


def _compare(world, parts, rank, reg, x, group=None):
    "Value and gradient of one process on the joined batch, and of this group after DDP's averaging, as relative differences"
    one, alone = _net(x.dtype), copy.deepcopy(reg).eval()  # evaluation sums over nobody
    exact = alone(one(x))
    exact.backward()
    net = nn.parallel.DistributedDataParallel(_net(x.dtype), process_group=group)
    reg.group = group
    loss = reg(net(x.split(parts)[rank]))
    loss.backward()
    return _apart(loss.detach(), exact.detach()), _apart(_grads(net), _grads(one))


def _worker(rank, where):
    "All worlds of up to four processes in one start"
    torch.set_num_threads(1)
    found = {}
    regs = {
        (w, d, i): SIGReg(32, **o)
        for w in PARTS
        for d in (torch.float64, torch.float32)
        for i, o in enumerate(OPTIONS)
    }  # before any process group
    for world, parts in PARTS.items():
        if rank >= world:
            continue
        dist.init_process_group('gloo', init_method=f'file://{where}/{world}', rank=rank, world_size=world)
        for (w, dtype, i), reg in regs.items():
            if w == world:
                found[f'{world} {dtype} {OPTIONS[i]}'] = _compare(
                    world, parts, rank, reg, _rows(sum(parts), dtype)
                )
        mine = regs[world, torch.float64, 0].draw(torch.zeros(2, 4))
        theirs = mine.clone()
        dist.broadcast(theirs, 0)
        found[f'{world} directions'] = (float(not mine.equal(theirs)), 0.0)
        if world == 4:  # two pairs, each with a batch of its own
            pairs, half = [dist.new_group(r) for r in ([0, 1], [2, 3])], rank // 2
            found['pairs'] = _compare(
                2, (4, 7 + half), rank % 2, SIGReg(16), _rows(11 + half, torch.float64), pairs[half]
            )
        dist.destroy_process_group()
    torch.save(found, f'{where}/found{rank}.pt')


def test_processes_equal_one_on_the_joined_batch(tmp_path):
    "One to four processes with unequal batches: value and parameter gradient after averaging, on every rank"
    mp.spawn(_worker, (str(tmp_path),), nprocs=max(PARTS))
    found = [torch.load(tmp_path / f'found{r}.pt', weights_only=True) for r in range(max(PARTS))]
    assert len(found[0]) == len(PARTS) * (2 * len(OPTIONS) + 1) + 1
    for rank, told in enumerate(found):
        for case, (value, grad) in told.items():
            limit = 1e-6 if 'float32' in case else 1e-10
            assert value < limit and grad < limit, (rank, case, value, grad)


def test_one_rank_evaluates_without_waiting(tmp_path):
    "In a group of one process an evaluation takes no part in a sum"
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        assert SIGReg(8).eval()(torch.randn(6, 3)).isfinite()
    finally:
        dist.destroy_process_group()


def test_fewer_than_two_samples_over_all_processes():
    "The count comes back with the sums, so that all processes complain alike"
    a = directions(4, 3, torch.Generator().manual_seed(0))
    for n in (0, 1):
        with pytest.raises(ValueError, match='at least 2 samples over all processes, got') as e:
            sigreg(torch.zeros(n, 4), a, reduce=lambda x: x)
        assert '\n' not in str(e.value)
    assert sigreg(torch.randn(1, 4), a, reduce=lambda x: 2 * x).isfinite()

"SIGReg in other types, shapes and numbers of processes than the chapter shows"
import copy, os, socket
import pytest, torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from jepa_lit.normality import epps_pulley
from jepa_lit.sigreg import SIGReg, directions, sigreg


@pytest.mark.parametrize('knots,t_max', [(3, 1.), (17, 3.), (41, 5.)])
@pytest.mark.parametrize('shape', [(2, 1), (7, 3), (33, 128)])
def test_equals_the_mean_of_epps_pulley(shape, knots, t_max):
    g = torch.Generator().manual_seed(0)
    z = torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_()
    a = directions(shape[1], 5, g).double()
    fast, slow = sigreg(z, a, knots, t_max), epps_pulley(z @ a, knots, t_max).mean()
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(fast, z)[0], torch.autograd.grad(slow, z)[0], rtol=1e-10, atol=1e-12)


def test_float32_is_close_to_float64():
    g = torch.Generator().manual_seed(0); z, a = torch.randn(2048, 64, generator=g), directions(64, 256, g)
    exact = sigreg(z.double(), a.double())
    assert abs(sigreg(z, a) - exact)/exact < 1e-5


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_short_floats_are_computed_in_float32(dtype):
    g = torch.Generator().manual_seed(0); z, a = torch.randn(500, 8, generator=g).to(dtype), directions(8, 16, g)
    assert sigreg(z, a).dtype == torch.float32
    torch.testing.assert_close(sigreg(z, a), sigreg(z.float(), a))
    with torch.autocast('cpu', torch.bfloat16): torch.testing.assert_close(sigreg(z, a), sigreg(z.float(), a))


def test_directions_follow_seed_and_step():
    z = torch.randn(64, 8)
    a, b, c = SIGReg(8, seed=1), SIGReg(8, seed=1), SIGReg(8, seed=2)
    one = [a(z).item() for _ in range(3)]
    b.load_state_dict({**b.state_dict(), '_extra_state': torch.tensor(2)})
    assert b(z).item() == one[2] and len(set(one)) == 3 and c(z).item() != one[0]


# several processes -------------------------------------------------------------------------------------------------

def _net(): torch.manual_seed(0); return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)).double()

def _worker(rank, world, port, parts, x, reg, out):
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    dist.init_process_group('gloo', rank=rank, world_size=world)
    net = nn.parallel.DistributedDataParallel(_net())
    loss = reg(net(x.split(parts)[rank])); loss.backward()
    alone = reg.eval()(net.module(x)) if rank == 0 else None              # others do not take part: must not wait
    if rank == 0: torch.save(dict(loss=loss.detach(), alone=alone.detach(), grads=[p.grad for p in net.parameters()]), out)
    dist.barrier(); dist.destroy_process_group()


@pytest.mark.parametrize('parts', [(5, 11), (3, 9, 4)])
def test_processes_equal_one_on_the_joined_batch(parts, tmp_path):
    x, reg = torch.randn(16, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), SIGReg(32)   # built before any process group
    net = _net(); loss = copy.deepcopy(reg)(net(x)); loss.backward()
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    mp.spawn(_worker, (len(parts), port, parts, x, reg, tmp_path/'out.pt'), nprocs=len(parts))
    got = torch.load(tmp_path/'out.pt', weights_only=True)
    torch.testing.assert_close(got['loss'], loss.detach(), rtol=1e-12, atol=0)
    for a, p in zip(got['grads'], net.parameters()): torch.testing.assert_close(a, p.grad, rtol=1e-10, atol=1e-14)
    assert got['alone'].isfinite()

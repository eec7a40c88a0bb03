"Directions whatever the default type is, waves and their derivatives, and what an import of SIGReg loads"

import subprocess, sys
import pytest, torch
from jepa_lit.sigreg import sigreg
from jepa_lit.slices import directions, wave_sums


@pytest.mark.parametrize('sampler', ['gaussian', 'orthogonal', 'sobol'])
def test_directions_do_not_depend_on_the_default_type(sampler):
    a, old = directions(5, 7, torch.Generator().manual_seed(3), sampler), torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        b, value = (
            directions(5, 7, torch.Generator().manual_seed(3), sampler),
            sigreg(torch.randn(4, 5, dtype=torch.float32), a),
        )
    finally:
        torch.set_default_dtype(old)
    assert a.dtype == b.dtype == value.dtype == torch.float32
    torch.testing.assert_close(a, b)  # but for the last digits of Sobol's first point, equal


@pytest.mark.parametrize('sampler', ['gaussian', 'orthogonal', 'sobol'])
def test_a_seed_means_one_thing_whatever_the_default_type(sampler):
    one = directions(4, 5, torch.Generator().manual_seed(0), sampler)
    try:
        torch.set_default_dtype(torch.bfloat16)
        two = directions(4, 5, torch.Generator().manual_seed(0), sampler)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(one, two)


@pytest.mark.parametrize('wrong', [dict(d=0), dict(s=0), dict(d=2.5), dict(s=True), dict(sampler='gauss')])
def test_directions_that_cannot_be(wrong, unchecked):
    with pytest.raises(ValueError) as e:
        directions(**{**dict(d=4, s=3), **wrong})
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('shape', [(5, 7), (2, 3, 40), (1, 700, 300)])
@pytest.mark.parametrize('knots, step', [(3, 0.5), (17, 3 / 16)])
def test_wave_sums_are_the_formula(shape, knots, step):
    p = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    t = step * torch.arange(1, knots).view(-1, *[1] * len(shape))
    plain = torch.stack([(t * p).cos().sum(-1), (t * p).sin().sum(-1)])
    fast = wave_sums(p, step, knots)
    torch.testing.assert_close(fast, plain, rtol=1e-11, atol=1e-11)
    weights = torch.randn(fast.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    slopes = [torch.autograd.grad((weights * x).sum(), p)[0] for x in (fast, plain)]
    torch.testing.assert_close(*slopes, rtol=1e-11, atol=1e-11)


def test_importing_sigreg_loads_torch_and_little_else():
    heavy = ('torchvision', 'PIL', 'scipy', 'sklearn', 'matplotlib', 'tqdm', 'torch._dynamo', 'msgspec')
    code = f"""
import sys, torch
with_torch = set(sys.modules)
import jepa_lit.sigreg
print([m for m in {heavy} if m in set(sys.modules) - with_torch])"""
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert run.stdout == '[]\n', run.stdout + run.stderr

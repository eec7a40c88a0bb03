"Agreement with the published statistic on the arrays in tests/parity (outputs of that code, no code)"

from pathlib import Path
import pytest, torch
from safetensors import safe_open
from jepa_lit.normality import epps_pulley
from jepa_lit.sigreg import sigreg

files = sorted((Path(__file__).parent / 'parity').glob('epps_pulley_*.safetensors'))


@pytest.mark.parametrize('file', files, ids=lambda f: f.stem)
@pytest.mark.parametrize('which', ['clear', 'fast'])
def test_epps_pulley_value_and_gradient(file, which):
    "Value and gradient to 1e-5 relative, the rounding of float32 in sums of this length"
    with safe_open(file, 'pt') as f:
        t, meta = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()
    knots, t_max, x = int(meta['knots']), float(meta['t_max']), t['x'].clone().requires_grad_()
    value = (
        epps_pulley(x @ t['directions'], knots, t_max).mean()
        if which == 'clear'
        else sigreg(x, t['directions'], knots, t_max)
    )
    torch.testing.assert_close(
        epps_pulley(t['x'] @ t['directions'], knots, t_max), t['stat'], rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(value, t['stat'].mean(), rtol=1e-5, atol=1e-6)
    grad = torch.autograd.grad(value, x)[0]
    assert (grad - t['grad']).norm() < 1e-5 * t['grad'].norm()


def test_gradient_is_the_slope():
    "Finite differences in float64, for a matrix and for one column"
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    for knots, t_max in ((17, 3.0), (9, 5.0)):
        assert torch.autograd.gradcheck(lambda x: epps_pulley(x, knots, t_max), x)
        assert torch.autograd.gradcheck(
            lambda x: epps_pulley(x, knots, t_max), x[:, 0].detach().requires_grad_()
        )


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    "Only the rounding of the input differs; the gradient comes back in the input's type"
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    value = epps_pulley(x)
    assert value.dtype == torch.float32 and torch.equal(value, epps_pulley(x.float()))
    assert torch.autograd.grad(value.sum(), x)[0].dtype == dtype


def test_there_is_something_to_compare():
    assert len(files) == 2

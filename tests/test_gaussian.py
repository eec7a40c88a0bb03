"The risk of probes in other types, shapes and laws than the chapter shows"

import math, warnings
import pytest, torch
from torch.distributions import Independent, Laplace, MultivariateNormal, Normal, StudentT
from jepa_lit.gaussian import (
    fisher_floor,
    fisher_information,
    integrated_bias,
    local_bias,
    ridge_bias,
    ridge_variance,
    score,
)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def double(*v):
    return torch.tensor(v, dtype=torch.float64)


# the linear probe ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('n,d,penalty', [(5, 1, 0.0), (9, 4, 0.7), (40, 12, 30), (3, 6, 1.0)])
def test_ridge_is_what_the_normal_equations_give(n, d, penalty):
    "Exact for any design, also with fewer samples than coordinates: the fit is linear in the labels"
    z, beta = (
        torch.randn(n, d, generator=gen(d), dtype=torch.float64),
        torch.randn(d, generator=gen(n), dtype=torch.float64),
    )
    lam, q = torch.linalg.eigh(z.T @ z)
    lam = lam.clamp(min=0)
    hat = torch.linalg.solve(
        z.T @ z + penalty * torch.eye(d, dtype=torch.float64), z.T
    )  # labels -> coefficients
    torch.testing.assert_close(
        ridge_bias(lam, q.T @ beta, penalty), q.T @ (hat @ z @ beta - beta), rtol=1e-7, atol=1e-9
    )
    torch.testing.assert_close(
        ridge_variance(lam, penalty, 2.0), 2 * (q.T @ hat).square().sum(1), rtol=1e-7, atol=1e-9
    )


def test_monte_carlo_within_its_error_bars():
    "Noise that is not normal: only its variance matters for the formulas; four standard errors, the variance's from the fourth moment"
    lam, m = double(9.0, 2.0, 0.3), 40_000
    z = torch.linalg.qr(torch.randn(20, 3, generator=gen(), dtype=torch.float64))[0] * lam.sqrt()
    noise = math.sqrt(3) * (2 * torch.rand(20, m, generator=gen(1), dtype=torch.float64) - 1)
    fits = torch.linalg.solve(
        z.T @ z + 0.5 * torch.eye(3), z.T @ ((z @ double(1.0, -1.0, 2.0))[:, None] + noise)
    )
    var, bias = fits.var(1), fits.mean(1) - double(1.0, -1.0, 2.0)
    assert ((bias - ridge_bias(lam, double(1.0, -1.0, 2.0), 0.5)).abs() < 4 * (var / m).sqrt()).all()
    bar = ((fits - fits.mean(1, keepdim=True)) ** 4).mean(1).sub(var**2).div(m).sqrt()
    assert ((var - ridge_variance(lam, 0.5)).abs() < 4 * bar).all()


def test_ridge_takes_batches_and_other_types():
    lam, beta = torch.rand(7, 1, 4, generator=gen()) + 0.1, torch.randn(3, 4, generator=gen())
    assert ridge_bias(lam, beta, 1).shape == (7, 3, 4) and ridge_variance(lam, 1).dtype == torch.float32
    torch.testing.assert_close(ridge_bias(lam, beta, 1)[2, 1], ridge_bias(lam[2, 0], beta[1], 1))
    assert (ridge_bias(lam, beta, 0) == 0).all()


@pytest.mark.parametrize('d', [2, 5, 16])
def test_equal_eigenvalues_win_where_the_lemmas_say(d):
    lam = torch.rand(200, d, generator=gen(d), dtype=torch.float64) + 0.01
    lam = lam / lam.mean(1, keepdim=True)
    even, flat = torch.full((d,), d**-0.5, dtype=torch.float64), torch.ones(d, dtype=torch.float64)
    for penalty in (0.01, 1.0, 50.0):
        assert (
            ridge_bias(lam, even, penalty).square().sum(1) >= ridge_bias(flat, even, penalty).square().sum()
        ).all()  # the average task
        worst = (
            ridge_bias(lam.amin(1, keepdim=True), torch.ones(1, dtype=torch.float64), penalty).abs().squeeze()
        )
        assert (worst >= penalty / (1 + penalty)).all()  # Lemma 1
    assert (ridge_variance(lam).sum(1) >= d).all()  # Lemma 2
    assert (
        ridge_variance(lam / lam.amax(1, keepdim=True), 1.0).sum(1)
        <= ridge_variance((lam / lam.amax(1, keepdim=True)).mean(1, keepdim=True), 1.0).sum(1) * d + 1e-12
    ).all()  # and where they do not


# score and Fisher information ------------------------------------------------------------------------------------------


def correlated(d, seed=0):
    a = torch.randn(d, d, generator=gen(seed), dtype=torch.float64)
    return a @ a.T + 0.5 * torch.eye(d, dtype=torch.float64)


@pytest.mark.parametrize('d', [1, 3, 7])
def test_score_of_a_normal_law(d):
    cov = correlated(d)
    x = torch.randn(10, d, generator=gen(), dtype=torch.float64)
    s = score(MultivariateNormal(torch.ones(d, dtype=torch.float64), cov).log_prob, x)
    torch.testing.assert_close(s, -torch.linalg.solve(cov, (x - 1).T).T, rtol=1e-9, atol=1e-11)
    assert not s.requires_grad and not x.requires_grad


def test_score_under_no_grad_and_in_float32():
    x = torch.randn(6, 2, generator=gen())
    with torch.no_grad():
        s = score(Independent(Normal(torch.zeros(2), torch.ones(2)), 1).log_prob, x)
    torch.testing.assert_close(s, -x)


@pytest.mark.parametrize('d', [1, 4])
def test_information_of_a_correlated_normal_law_is_the_trace_of_the_inverse(d):
    "Lemma 6 with equality, moved away from the origin; four standard errors"
    cov = correlated(d, 1)
    p = MultivariateNormal(torch.full((d,), 3.0, dtype=torch.float64), cov)
    x = 3 + torch.randn(50_000, d, generator=gen(), dtype=torch.float64) @ torch.linalg.cholesky(cov).T
    bar = score(p.log_prob, x).square().sum(1).std() / len(x) ** 0.5
    assert (fisher_information(p.log_prob, x) - torch.linalg.inv(cov).trace()).abs() < 4 * bar


@pytest.mark.parametrize('nu', [3.0, 10.0, 50.0])
def test_information_of_student_in_closed_form(nu):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        p = Independent(StudentT(double(nu, nu), double(0.0, 0.0), double(2.0, 2.0)), 1)
        x = p.sample((50_000,))
    bar = score(p.log_prob, x).square().sum(1).std() / len(x) ** 0.5
    assert (fisher_information(p.log_prob, x) - 2 * (nu + 1) / (nu + 3) / 4).abs() < 4 * bar


def test_information_warns_once_of_other_samples_and_is_silent_otherwise():
    bell = Independent(Normal(torch.zeros(3), torch.ones(3)), 1)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for seed in range(20):
            fisher_information(bell.log_prob, torch.randn(300, 3, generator=gen(seed)))
        fisher_information(bell.log_prob, 5 * torch.randn(5, 3))  # too few to judge
    with pytest.warns(UserWarning, match='edge'):
        fisher_information(lambda z: 0 * z.sum(1), torch.rand(300, 3, generator=gen()))
    with pytest.warns(UserWarning, match='another law'):
        fisher_information(bell.log_prob, 0.5 * torch.randn(3000, 3, generator=gen()))


@pytest.mark.parametrize('constraint', ['trace', 'det', 'frobenius', 'spectral'])
@pytest.mark.parametrize('d', [1, 2, 9])
def test_floor_bounds_every_covariance_and_is_reached(d, constraint):
    held = dict(
        trace=torch.trace,
        det=torch.det,
        frobenius=torch.linalg.norm,
        spectral=lambda c: torch.linalg.eigvalsh(c)[-1],
    )[constraint]
    for seed in range(30):
        cov = correlated(d, seed)
        assert torch.linalg.inv(cov).trace() >= fisher_floor(d, held(cov).item(), constraint) * (1 - 1e-9)
    even = 1.7 * torch.eye(d, dtype=torch.float64)
    assert math.isclose(fisher_floor(d, held(even).item(), constraint), d / 1.7, rel_tol=1e-9)


# neighbors ------------------------------------------------------------------------------------------------------------


def test_local_bias_in_three_dimensions_against_quadrature():
    "Kernel probe with a Gaussian kernel under a normal law: the neighbors are normal, N(q/(1 + h²), h²/(1 + h²))"
    h, q = 0.05, torch.randn(50, 3, generator=gen(), dtype=torch.float64)
    bell, a = Independent(Normal(torch.zeros(3).double(), torch.ones(3).double()), 1), double(0.5, -1.0, 2.0)
    mean, var = q / (1 + h**2), h**2 / (1 + h**2)
    exact = torch.exp(-var * a.square().sum() / 2) * torch.sin(mean @ a) - torch.sin(q @ a)  # task sin(a·z)
    torch.testing.assert_close(
        local_bias(bell.log_prob, lambda z: torch.sin(z @ a), q, h**2), exact, rtol=0, atol=40 * h**4
    )


def test_local_bias_is_linear_in_task_and_moment():
    p, x = Independent(Laplace(torch.zeros(2), torch.ones(2)), 1), torch.randn(20, 2, generator=gen())
    f, g = (lambda z: z[:, 0] ** 3), (lambda z: torch.cos(z).prod(1))
    both = local_bias(p.log_prob, lambda z: 2 * f(z) - g(z), x, 0.3)
    torch.testing.assert_close(
        both,
        3 * (2 * local_bias(p.log_prob, f, x, 0.1) - local_bias(p.log_prob, g, x, 0.1)),
        rtol=1e-4,
        atol=1e-5,
    )
    assert (local_bias(p.log_prob, lambda z: 0 * z[:, 0] + 1, x, 1.0) == 0).all()


def test_integrated_bias_is_the_mean_square_of_the_local_one():
    "Over linear tasks of every direction; and the normal law has the least of three"
    found = {}
    for name, p in dict(
        normal=Normal(0.0, 1.0), laplace=Laplace(0.0, 0.5**0.5), student=StudentT(5.0, 0.0, 0.6**0.5)
    ).items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            p = Independent(p.expand((4,)), 1)
            x = p.sample((4000,))
        each = sum(local_bias(p.log_prob, lambda z, k=k: z[:, k], x, 0.01).square().mean() for k in range(4))
        found[name] = integrated_bias(fisher_information(p.log_prob, x), 0.01)
        torch.testing.assert_close(found[name], each)
    assert found['normal'] < found['student'] < found['laplace']
    assert integrated_bias(3, 2.0, 0.5, 8.0) == 4 * (1.5 + 2)


# errors: one line, naming what was given -------------------------------------------------------------------------------

v, x = torch.ones(3), torch.zeros(4, 2)


def bell(z):
    return -z.square().sum(1) / 2


@pytest.mark.parametrize(
    'call,kind,words',
    [
        (lambda: ridge_bias([1.0, 2.0], v, 1.0), TypeError, 'eigenvalues'),
        (lambda: ridge_bias(torch.tensor([1.0, math.nan]), v[:2], 1.0), ValueError, 'eigenvalues'),
        (lambda: ridge_variance(torch.tensor([1.0, math.inf])), ValueError, 'finite'),
        (lambda: ridge_variance(v, math.nan), ValueError, 'nan'),
        (lambda: ridge_variance(torch.tensor([1.0, 0.0])), ValueError, 'not both 0'),
        (lambda: ridge_variance(v, 1.0, math.inf), ValueError, 'noise'),
        (lambda: score(Normal(0.0, 1.0).log_prob, x), ValueError, 'Independent'),
        (lambda: score(bell, x[None]), ValueError, r'\(1, 4, 2\)'),
        (lambda: score(bell, x.long()), TypeError, 'int64'),
        (lambda: score(bell, None), TypeError, 'NoneType'),
        (lambda: score(lambda z: torch.zeros(4), x), ValueError, 'differentiates'),
        (lambda: score(lambda z: z.log().sum(1), -v[:2].expand(4, 2)), ValueError, 'finite'),
        (lambda: local_bias(bell, lambda z: z, x, 1.0), ValueError, r'\(4, 2\)'),
        (lambda: local_bias(bell, bell, x, -1.0), ValueError, 'moment'),
        (lambda: integrated_bias(1.0, 1.0, -1.0), ValueError, 'gradient'),
        (lambda: integrated_bias(1.0, 1.0, 1.0, math.nan), ValueError, 'curvature'),
        (lambda: fisher_floor(0, 1.0), ValueError, 'd must'),
        (lambda: fisher_floor(2, math.inf), ValueError, 'scale'),
        (lambda: fisher_floor(2, 1.0, 'l1'), ValueError, 'l1'),
    ],
)
def test_errors_are_one_line(call, kind, words, unchecked):
    with pytest.raises(kind, match=words) as e:
        call()
    assert '\n' not in str(e.value)

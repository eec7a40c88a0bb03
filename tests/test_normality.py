"The tests of normality: SciPy, hand-made oracles, the R package MVN, published numbers, shapes, types and bad input"

import itertools, math, warnings
from pathlib import Path
import jaxtyping, numpy as np, pytest, torch
from safetensors.torch import load_file
from scipy import stats
from jepa_lit import normality as N

files = sorted((Path(__file__).parent / 'parity').glob('epps_pulley_*.safetensors'))
columns = dict(
    epps_pulley=N.epps_pulley,
    epps_pulley_exact=N.epps_pulley_exact,
    anderson_darling=N.anderson_darling,
    cramer_von_mises=N.cramer_von_mises,
    watson=N.watson,
    kolmogorov_smirnov=N.kolmogorov_smirnov,
    anderson_darling_s=lambda x: N.anderson_darling(x, True),
    cramer_von_mises_s=lambda x: N.cramer_von_mises(x, True),
    watson_s=lambda x: N.watson(x, True),
    kolmogorov_smirnov_s=lambda x: N.kolmogorov_smirnov(x, True),
    shapiro_wilk=N.shapiro_wilk,
    shapiro_francia=lambda x: N.shapiro_wilk(x, francia=True),
    jarque_bera=N.jarque_bera,
    extended_jarque_bera=N.extended_jarque_bera,
    moments=N.moments,
    moments_2=lambda x: N.moments(x, 2),
    vasicek_entropy=N.vasicek_entropy,
)
clouds = dict(
    bhep=N.bhep,
    bhep_s=lambda x: N.bhep(x, 0.7, True),
    henze_zirkler=N.henze_zirkler,
    skewness=lambda x: N.mardia(x)[0],
    kurtosis=lambda x: N.mardia(x)[1],
)
each = pytest.mark.parametrize('name', columns)
whole = pytest.mark.parametrize('name', clouds)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def close(a, b, rtol=1e-10, atol=1e-10):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=atol)


def sample(n, s=4, seed=0):
    return 1.4 * normal(n, s, seed=seed) + 0.3 * normal(n, s, seed=seed + 1).exp()


@pytest.fixture
def untyped():
    "Errors are ours only where the run-time type checker does not speak first"
    old = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update('jaxtyping_disable', True)
    yield
    jaxtyping.config.update('jaxtyping_disable', old)


# SciPy
@pytest.mark.parametrize('n', [3, 8, 51, 400])
def test_scipy(n):
    x = sample(n)
    c = x.numpy()
    close(N.cramer_von_mises(x), [stats.cramervonmises(v, 'norm').statistic for v in c.T])
    close(N.kolmogorov_smirnov(x), [stats.kstest(v, 'norm').statistic for v in c.T])
    z = (c - c.mean(0)) / c.std(0, ddof=1)
    close(N.cramer_von_mises(x, True), [stats.cramervonmises(v, 'norm').statistic for v in z.T])
    close(N.kolmogorov_smirnov(x, True), [stats.kstest(v, 'norm').statistic for v in z.T])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # SciPy 1.17 announces another way to ask for the p-value
        close(N.anderson_darling(x, True), [stats.anderson(v, 'norm').statistic for v in c.T], rtol=1e-9)
    close(N.jarque_bera(x), stats.jarque_bera(c, axis=0).statistic)


@pytest.mark.parametrize('n', [3, 4, 5, 6, 7, 11, 12, 50, 2000, 5000])
def test_shapiro_wilk_is_scipy_s(n):
    "SciPy computes the same approximation (AS R94) with other rounding"
    x = sample(n, 2)
    close(N.shapiro_wilk(x), [stats.shapiro(v).statistic for v in x.numpy().T], rtol=1e-8)


@pytest.mark.parametrize('n,m', [(3, 1), (5, None), (20, 1), (20, 9), (101, None), (101, 50)])
def test_vasicek_is_scipy_s(n, m):
    x = sample(n)
    close(
        N.vasicek_entropy(x, m),
        stats.differential_entropy(x.numpy(), window_length=m, method='vasicek', axis=0),
    )


def test_vasicek_s_default_window_fits_small_samples():
    for n in (3, 4):
        close(N.vasicek_entropy(sample(n)), N.vasicek_entropy(sample(n), 1))


# By hand
def test_known_values():
    "Samples small enough for a pocket calculator"
    F = lambda v: 0.5 * math.erfc(-v / math.sqrt(2))
    x = torch.tensor([1.0, -1.0], dtype=torch.float64)
    u = [F(-1), F(1)]
    close(
        N.anderson_darling(x),
        -2 - sum((2 * i - 1) / 2 * (math.log(u[i - 1]) + math.log(1 - u[2 - i])) for i in (1, 2)),
    )
    close(N.cramer_von_mises(x), 1 / 24 + (u[0] - 0.25) ** 2 + (u[1] - 0.75) ** 2)
    close(N.watson(x), 1 / 24 + (u[0] - 0.25) ** 2 + (u[1] - 0.75) ** 2)  # the mean of u is one half
    close(
        N.watson(x + 1), 1 / 24 + (F(0) - 0.25) ** 2 + (F(2) - 0.75) ** 2 - 2 * ((F(0) + F(2)) / 2 - 0.5) ** 2
    )
    close(N.kolmogorov_smirnov(x), 0.5 - u[0])
    close(N.jarque_bera(x), 2 * (1 - 3) ** 2 / 24)
    close(N.extended_jarque_bera(x + 1), 2 * 4 / 24 + 2 * 1 / 2 + (2 - 1) ** 2 / 2)
    close(N.moments(x), 2 * (4 * 0 + 0 + (1 - 6 + 3) ** 2 / 24))
    close(
        N.vasicek_entropy(torch.tensor([4.0, 0.0, 1.0], dtype=torch.float64), 1),
        (math.log(1.5) + math.log(6) + math.log(4.5)) / 3,
    )
    close(
        N.shapiro_wilk(torch.tensor([4.0, 0.0, 1.0], dtype=torch.float64)),
        (4 / math.sqrt(2)) ** 2 / ((7 / 3) ** 2 + (5 / 3) ** 2 + (2 / 3) ** 2),
    )


@pytest.mark.parametrize('k', [1, 3, 6])
def test_moments_are_hermite_s(k):
    x = sample(30)
    c = x.numpy()
    he = [
        np.polynomial.hermite_e.hermeval(c, [0] * j + [1]).mean(0) ** 2 / math.factorial(j)
        for j in range(1, k + 1)
    ]
    close(N.moments(x, k), 30 * sum(he))


@pytest.mark.parametrize('beta', [0.3, 1, 2.0])
def test_bhep_is_its_integral(beta):
    "n times the weighted square of the gap of characteristic functions, by a two-dimensional trapezoid rule"
    x = sample(9, 2)
    t = torch.linspace(-8 * beta, 8 * beta, 201, dtype=torch.float64)
    t = torch.cartesian_prod(t, t)
    gap = torch.exp(1j * (t @ x.T)).mean(1) - torch.exp(-t.square().sum(1) / 2)
    w = torch.exp(-t.square().sum(1) / (2 * beta**2)) / (2 * math.pi * beta**2) * (16 * beta / 200) ** 2
    close(N.bhep(x, beta), 9 * (w * gap.abs() ** 2).sum(), rtol=1e-8)


def test_clouds_by_loops():
    x = sample(12, 3)
    n, d = x.shape
    y = x - x.mean(0)
    S = np.linalg.inv((y.T @ y / n).numpy())
    y = y.numpy()
    b = ((2 * d + 1) * n / 4) ** (1 / (d + 4)) / math.sqrt(2)
    D = lambda v: float(v @ S @ v)
    pairs = list(itertools.product(range(n), repeat=2))
    hz = (
        sum(math.exp(-b * b / 2 * D(y[i] - y[j])) for i, j in pairs) / n
        - 2 * (1 + b * b) ** (-d / 2) * sum(math.exp(-b * b * D(v) / 2 / (1 + b * b)) for v in y)
        + n * (1 + 2 * b * b) ** (-d / 2)
    )
    close(N.henze_zirkler(x), hz)
    close(N.bhep(x, b, standardize=True), hz)
    b1, b2 = N.mardia(x)
    close(b1, sum(float(y[i] @ S @ y[j]) ** 3 for i, j in pairs) / n**2)
    close(b2, sum(D(v) ** 2 for v in y) / n)


def test_the_r_package_mvn():
    "Printed by mvn() for the setosa irises: all four columns, and the first two (rounded there to three digits)"
    from sklearn.datasets import load_iris

    x = torch.tensor(load_iris().data[:50])
    for cols, hz, skew, kurt, tol in (
        (x, 0.9488453, 25.6643445196298, 1.29499223711605, 1e-7),
        (x[:, :2], 0.286, 0.760, 0.093, 1e-3),
    ):
        d = cols.shape[1]
        b1, b2 = N.mardia(cols)
        close(N.henze_zirkler(cols), hz, 0, tol)
        close(50 * b1 / 6, skew, 0, tol)
        close((b2 - d * (d + 2)) / math.sqrt(8 * d * (d + 2) / 50), kurt, 0, tol)


def test_identities():
    x = sample(40, 1)[:, 0]
    close(math.sqrt(2 * math.pi) * N.bhep(x), N.epps_pulley_exact(x))
    b1, b2 = N.mardia(x)
    close(40 * (b1 / 6 + (b2 - 3) ** 2 / 24), N.jarque_bera(x))
    close(N.moments((x - x.mean()) / x.std(correction=0)), N.jarque_bera(x))
    turn = torch.linalg.qr(normal(3, 3))[0]
    y = sample(20, 3)
    close(N.bhep(y @ turn), N.bhep(y))
    for f in (clouds['bhep_s'], N.henze_zirkler, clouds['skewness'], clouds['kurtosis']):
        close(f(y @ normal(3, 3) - 7), f(y), 1e-8)


# Published numbers
@pytest.mark.parametrize('file', files, ids=lambda f: f.stem)
def test_published_numbers(file):
    "Float32 projections; where the published definition is another one, its relation to ours"
    t = load_file(file)
    x = t['x'] @ t['directions']
    n = len(x)
    s = x.std(0)
    ref = {k[4:]: v for k, v in t.items() if k.startswith('ref.')}
    ad, inside = N.anderson_darling(x), x.abs().amax(0) < 3
    if inside.any():
        close(ad[inside], ref['AndersonDarling'][inside], 1e-4, 2e-5)  # the same
    off = (ad - ref['AndersonDarling'])[~inside]
    assert (off > 5e-5).all() and (off / ad[~inside]).max() < 3e-3  # its log Φ is approximate in the tails
    close(N.cramer_von_mises(x) - 1 / (12 * n), n * ref['CramerVonMises'], 1e-4)  # a mean, and no constant
    close(N.watson(x) - 1 / (12 * n), n * ref['Watson'], 1e-4)
    close(N.extended_jarque_bera(x) - N.jarque_bera(x), ref['VCReg'], 1e-5)
    z = (x - x.mean(0)) / s  # its skewness and kurtosis use n - 1
    close(
        n * ((z**3).mean(0) ** 2 / 6 + ((z**4).mean(0) - 3) ** 2 / 24),
        ref['ExtendedJarqueBera'] - ref['VCReg'],
        1e-3,
        1e-4,
    )
    assert (N.extended_jarque_bera(x) - ref['ExtendedJarqueBera']).abs().max() > 0.1
    shifted = 1 - ref['ShapiroWilk'] - N.shapiro_wilk(x)  # uncentered: sees the mean
    assert np.corrcoef(shifted, (x.mean(0) / s).square())[0, 1] < -0.95
    ratio = math.sqrt(2 * math.pi * math.e) * s / N.vasicek_entropy(x, 1).exp()  # no entropy
    assert (ratio / ref['Entropy'] - 1).abs().max() < 0.05


def test_the_differences_told_in_the_chapter():
    a, b = map(load_file, files)
    x, y = a['x'] @ a['directions'], b['x'] @ b['directions']
    close([N.anderson_darling(y)[2], b['ref.AndersonDarling'][2]], [19.104, 19.076], 0, 6e-4)
    jb = a['ref.ExtendedJarqueBera'] - a['ref.VCReg']
    worst = (jb - N.jarque_bera(x)).abs().argmax()
    close([jb[worst], N.jarque_bera(x)[worst]], [6.908, 8.127], 0, 6e-4)
    close([a['ref.ShapiroWilk'][1], 1 - N.shapiro_wilk(x)[1]], [0.133, 0.038], 0, 6e-4)
    close([a['ref.Entropy'][0], N.vasicek_entropy(x, 1)[0]], [1.394, 1.092], 0, 6e-4)


# Shapes, types, order
@each
@pytest.mark.parametrize('shape', [(7,), (7, 1), (13, 5), (1, 9, 2), (3, 8, 4), (4, 6, 1)])
def test_shapes(name, shape):
    "Samples on the axis before the last; columns and views on their own, in any memory layout and order of samples"
    f, x = (
        columns[name],
        sample(*shape[-2:]).expand(*shape) + 0.1 * normal(*shape, seed=3)
        if len(shape) > 1
        else sample(shape[0], 1)[:, 0],
    )
    out = f(x)
    assert out.shape == (() if x.ndim == 1 else shape[:-2] + shape[-1:])
    if x.ndim == 3:
        close(out, torch.stack([f(v) for v in x]))
    if x.ndim == 2:
        close(out, torch.stack([f(c) for c in x.unbind(1)]))
    if x.ndim > 1:
        close(f(x.mT.contiguous().mT), out)
        close(f(x.flip(-2)), out)


@whole
@pytest.mark.parametrize('shape', [(7,), (7, 1), (13, 5), (1, 9, 2), (3, 8, 4)])
def test_cloud_shapes(name, shape):
    f, x = clouds[name], normal(*shape)
    out = f(x)
    assert out.shape == (shape[:1] if x.ndim == 3 else ())
    if x.ndim == 3:
        close(out, torch.stack([f(v) for v in x]))
    if x.ndim == 1:
        close(out, f(x[:, None]))


def test_no_columns():
    assert all(
        f(torch.ones(9, 0)).shape == (0,) and f(torch.ones(2, 9, 0)).shape == (2, 0) for f in columns.values()
    )


@pytest.mark.parametrize('name', [*columns, *clouds])
def test_types(name):
    "float32 agrees with float64 at n = 2000; half precision is rounding of the input, then float32, and the gradient returns in its type"
    f, x = {**columns, **clouds}[name], normal(2000 if name in columns else 300, 3)
    close(
        f(x.float()), f(x), *((2e-3, 2e-5) if name == 'epps_pulley_exact' else (2e-4, 2e-5))
    )  # whose sum of n² terms cancels: float64 is advised
    for half in (torch.bfloat16, torch.float16):
        h = x.to(half).requires_grad_()
        assert f(h).dtype == torch.float32 and torch.equal(f(h), f(h.float()))
        assert torch.autograd.grad(f(h).sum(), h)[0].dtype == half


@pytest.mark.parametrize('name', [*columns, *clouds])
def test_slopes(name):
    f = {**columns, **clouds}[name]
    for shape in ((9,), (9, 2), (2, 9, 2)):
        assert torch.autograd.gradcheck(f, normal(*shape, seed=6).requires_grad_())


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_far_tails(dtype):
    "Φ rounds to 0 and 1 long before; values and slopes stay finite and right"
    x = torch.tensor([-30.0, -1.0, 0.0, 2.0, 30.0], dtype=dtype, requires_grad=True)
    for f in (N.anderson_darling, N.cramer_von_mises, N.watson, N.kolmogorov_smirnov, N.epps_pulley):
        assert f(x).isfinite() and torch.autograd.grad(f(x), x)[0].isfinite().all()
    u = stats.norm.logcdf(x.detach().double().numpy())
    close(
        N.anderson_darling(x).detach(),
        -5
        - sum(
            (2 * i - 1) / 5 * (u[i - 1] + stats.norm.logsf(x.detach().double().numpy())[5 - i])
            for i in range(1, 6)
        ),
        1e-5,
    )


def test_levels_and_expectations():
    "Exact for every n: 1/6, 1, 1/12, k moments; (n - 1)/(n + 1) d(d + 2) for Mardia's kurtosis; within 4.5 standard errors"
    x = normal(6, 20_000, seed=7, dtype=torch.float32)
    y = normal(3000, 9, 2, seed=8, dtype=torch.float32)
    for v, e in (
        (N.cramer_von_mises(x), 1 / 6),
        (N.anderson_darling(x), 1),
        (N.watson(x), 1 / 12),
        (N.moments(x, 3), 3),
        (N.bhep(y, 0.5), 1 - 1 / 1.5),
        (N.mardia(y)[1], 8 * 8 / 10),
    ):
        assert abs(v.mean() - e) < 4.5 * v.std() / math.sqrt(len(v))


def test_the_gradient_of_epps_pulley_is_bounded():
    "3 sqrt(2π/e), sharp; 4.5691 for the knots as shipped"
    for n in (2, 10, 500):
        x = torch.full((n,), math.sqrt(2) + 1, dtype=torch.float64)
        x[0] -= 1
        x.requires_grad_()
        close(
            torch.autograd.grad(N.epps_pulley_exact(x), x)[0][0],
            (3 - 2 / n) * math.sqrt(2 * math.pi / math.e),
        )
        assert abs(torch.autograd.grad(N.epps_pulley(x), x)[0]).max() < 4.5691
    for scale in (0.1, 1, 4, 20):
        x = (scale * normal(6, 2000, seed=9)).requires_grad_()
        assert torch.autograd.grad(N.epps_pulley(x).sum(), x)[0].abs().max() < 4.5691


# Bad input
@pytest.mark.parametrize('name', [*columns, *clouds])
def test_bad_input(name, untyped):
    "One line that says what was given and what was expected"
    f, x = {**columns, **clouds}[name], normal(8, 2)
    least = 3 if name in ('shapiro_wilk', 'shapiro_francia', 'vasicek_entropy') else 2
    shape = f'x must be (n), (n s) or (v n s) with n of {least} or more, got '
    for bad, kind, told in (
        (x.tolist(), TypeError, 'x must be a floating-point tensor, got list'),
        (x.long(), TypeError, 'x must be a floating-point tensor, got torch.int64'),
        (x > 0, TypeError, 'x must be a floating-point tensor, got torch.bool'),
        (x.to(torch.complex64), TypeError, 'x must be a floating-point tensor'),
        (x[None, None], ValueError, f'{shape}(1, 1, 8, 2)'),
        (x[0, 0], ValueError, f'{shape}()'),
        (x[: least - 1], ValueError, f'{shape}({least - 1}, 2)'),
        (x[None, :0], ValueError, f'{shape}(1, 0, 2)'),
        (torch.cat([x, x.log()]), ValueError, 'x must be finite, got NaN or infinity'),
        (x / 0, ValueError, 'x must be finite, got NaN or infinity'),
    ):
        with pytest.raises(kind) as e:
            f(bad)
        assert told in str(e.value) and '\n' not in str(e.value), e.value


def test_bad_options(untyped):
    x = normal(8, 2)
    flat = torch.ones(8, 2)
    one = torch.stack([x[:, 0], flat[:, 0]], 1)
    for f in (
        N.shapiro_wilk,
        N.jarque_bera,
        N.extended_jarque_bera,
        *(columns[k] for k in columns if k.endswith('_s')),
    ):
        for bad in (flat, one, 0.1 * flat[None]):
            with pytest.raises(ValueError, match='two different values in each column'):
                f(bad)
    for m in (0, 4, -1, 2.5, True, '3'):
        with pytest.raises(ValueError, match='m must be an integer from 1 to 3 for 8 samples, got'):
            N.vasicek_entropy(x, m)
    for k in (0, -2, 1.5, True):
        with pytest.raises(ValueError, match='k must be an integer of 1 or more, got'):
            N.moments(x, k)
    for beta in (0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match='beta must be positive and finite, got'):
            N.bhep(x, beta)
    for f in (N.henze_zirkler, N.mardia, clouds['bhep_s']):
        for bad, told in (
            (x[:2], '2 samples of 2 dimensions'),
            (x[:, [0, 0]], 'full rank 2'),
            (one, 'full rank 2'),
            (torch.stack([x, one]).float(), 'full rank 2'),
            (1e-4 * flat, 'full rank 2'),
        ):
            with pytest.raises(ValueError, match=told):
                f(bad)
    N.henze_zirkler(torch.stack([1e-6 * x[:, 0], 1e6 * x[:, 1]], 1))  # badly scaled is not degenerate


def test_values_that_have_none():
    "Ties have no entropy; the tests that only sort do not mind them"
    tied = torch.tensor([0.0, 0.0, 0.0, 1.0])
    assert N.vasicek_entropy(tied, 1) == -math.inf
    assert all(
        f(tied).isfinite()
        for f in (
            N.anderson_darling,
            N.cramer_von_mises,
            N.watson,
            N.kolmogorov_smirnov,
            N.shapiro_wilk,
            N.jarque_bera,
            N.moments,
            N.bhep,
        )
    )


@pytest.mark.parametrize('scale', [1e20, 1e-24])
def test_large_and_small_numbers_in_float32(scale):
    import jepa_lit.normality as n

    x = torch.tensor([1.0, 2.0, 3.0, -1.0, 0.5])
    for f in (n.shapiro_wilk, n.jarque_bera):
        torch.testing.assert_close(f(x * scale), f(x), rtol=1e-5, atol=0)

"The loss as a selector: SciPy's rank correlation, bands, held-out exponents, misuse"

import warnings
import numpy as np, pytest, torch
from scipy.stats import spearmanr
from jepa_lit.selection import ALPHAS, selector, selector_band, selector_held_out


def grid(n=28, seed=0, alpha=0.4, noise=0.0):
    "Runs whose accuracy follows loss/lamb**alpha"
    rng = np.random.default_rng(seed)
    lamb, accuracy = rng.choice([0.003, 0.01, 0.1, 0.5, 0.9], n), rng.uniform(0.8, 1, n)
    return lamb**alpha * (1.1 - accuracy) * np.exp(noise * rng.normal(size=n)), lamb, accuracy


@pytest.mark.parametrize('alpha', [-0.5, 0, 0.25, 0.4, 1, 2.0])
@pytest.mark.parametrize('digits', [1, 2, 8])  # few digits: many ties
def test_selector_is_scipys_rank_correlation(alpha, digits):
    loss, lamb, accuracy = grid(noise=0.5)
    loss, accuracy = loss.round(digits + 1) + 0.01, accuracy.round(digits)
    theirs = spearmanr(-loss / lamb**alpha, accuracy)[0]
    assert selector(loss, lamb, accuracy, alpha) == pytest.approx(theirs, abs=1e-12) and isinstance(
        selector(loss, lamb, accuracy, alpha), float
    )
    assert selector(loss, lamb, accuracy, [0.0, alpha])[1] == pytest.approx(theirs, abs=1e-12)


def test_selector_on_runs_with_a_known_answer():
    loss, lamb, accuracy = grid()
    rho = selector(loss, lamb, accuracy, ALPHAS)
    assert rho[8] == pytest.approx(1) and ALPHAS[8] == 0.4 and rho[[0, -1]].max() < 0.9
    assert (
        selector([1, 2, 3], [0.1] * 3, [3, 2, 1]) == 1
        and selector([1, 2, 3], [0.1] * 3, [1, 2, 3], 0.7) == -1
    )
    assert selector([1, 2, 2, 3], [1] * 4, [4, 3, 3, 1]) == 1  # ties in the same places
    assert selector([1, 1, 2], [1] * 3, [1, 2, 1]) == pytest.approx(0.5)  # ranks 2.5 2.5 1 and 1.5 3 1.5
    assert np.isnan(selector([0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [1, 2, 3], 1))  # nothing left to rank by


def test_selector_sees_ranks_only_and_takes_what_holds_numbers():
    loss, lamb, accuracy = grid(noise=0.3)
    order = np.random.default_rng(1).permutation(len(loss))
    for a in (0, 0.3):
        want = selector(loss, lamb, accuracy, a)
        assert selector(100 * loss, lamb, 100 * accuracy**5 - 3, a) == want and selector(
            loss[order], lamb[order], accuracy[order], a
        ) == pytest.approx(want, abs=1e-12)
        assert selector(
            torch.tensor(loss, requires_grad=True), lamb.tolist(), tuple(accuracy), torch.tensor(a)
        ) == pytest.approx(want, abs=1e-12)
    assert selector([0.1, 0.2, 0.3], [0, 0.1, 1], [3, 2, 1]) == 1  # no power, so no weight is a problem


def test_selector_band():
    data = grid(noise=0.5)
    state, np_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    low, high = selector_band(*data)
    assert (low <= high).all() and (low <= (rho := selector(*data, ALPHAS))).all() and (rho <= high).all()
    narrow = selector_band(*data, level=0.5)
    assert (low <= narrow[0]).all() and (narrow[1] <= high).all()
    assert np.array_equal(low, selector_band(*data)[0]) and not np.array_equal(
        low, selector_band(*data, seed=1)[0]
    )
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == np_state).all()
    one = selector_band(*data, alpha=0.4)
    assert one[0].shape == () and one[0] == low[8]
    perfect = selector_band(*grid(), alpha=0.4)
    assert perfect[0] == pytest.approx(1) and perfect[1] == pytest.approx(1)
    assert all(
        np.isfinite(e).all() for e in selector_band([1, 2, 3], [0.1, 0.3, 0.2], [3, 2, 1])
    )  # many draws repeat one run: left out
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert np.isnan(selector_band([1, 2, 3], [0.1, 0.2, 0.3], [3, 2, 1], [0, 1])[0]).tolist() == [
            False,
            True,
        ]


def test_selector_held_out():
    held = selector_held_out(*grid(noise=0.1), splits=50)
    assert {k: v.shape for k, v in held.items()} == dict.fromkeys(
        ('alpha', 'inside', 'outside', 'plain'), (50,)
    )
    assert abs(np.median(held['alpha']) - 0.4) < 0.11 and held['outside'].mean() > 0.9 > held['plain'].mean()
    assert set(selector_held_out(*grid(), alpha=[0.2], splits=5)['alpha']) == {0.2} and selector_held_out(
        *grid(7), splits=5
    )['alpha'].shape == (5,)
    rng = np.random.default_rng(2)
    luck = [
        selector_held_out(rng.uniform(1, 2, 20), rng.uniform(0.01, 1, 20), rng.uniform(size=20), splits=20)
        for _ in range(30)
    ]
    inside, outside = [np.mean([h[k] for h in luck]) for k in ('inside', 'outside')]
    assert (
        inside > 0.15 and abs(outside) < 0.15
    )  # choosing finds something in nothing; the other half does not


three = [0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    'given, error, says',
    [
        ((three[:1],) * 3, ValueError, 'one number a run, of at least 3 runs'),
        ((three[:2],) * 3, ValueError, r'got shapes \(2,\), \(2,\) and \(2,\)'),
        (([[0.1] * 3] * 3, three, three), ValueError, r'got shapes \(3, 3\)'),
        ((three, three, three + [0.4]), ValueError, r'got shapes \(3,\), \(3,\) and \(4,\)'),
        (
            (three, three, [0.1, np.nan, 0.3]),
            ValueError,
            'accuracy: finite numbers expected, got .*nan',
        ),
        (([0.1, 0.2, np.inf], three, three), ValueError, 'loss: finite'),
        (
            (three, [0.0, 0.1, 0.2], three, 0.4),
            ValueError,
            'above 0 where alpha is not 0, got 0 to 0.2',
        ),
        (
            (three, [-0.1, 0.1, 0.2], three),
            ValueError,
            r'lamb: weights in \[0, 1\] expected, .*got -0.1 to 0.2',
        ),
        ((three, [1, 10, 100], three), ValueError, 'lamb: weights in'),
        ((['a', 'b', 'c'], three, three), TypeError, 'loss: numbers expected'),
        ((three, three, None), TypeError, 'accuracy: numbers expected'),
        ((three, three, [[1], [2, 3], 4]), ValueError, 'inhomogeneous'),
        ((three, three, [True, False, True]), TypeError, 'accuracy: numbers expected'),
        (([1j, 2, 3], three, three), TypeError, 'loss: numbers expected'),
        ((three, three, three, 'x'), TypeError, 'alpha: numbers expected'),
        ((three, three, three, np.nan), ValueError, 'alpha: finite'),
        ((three, three, three, []), ValueError, 'alpha: finite numbers expected'),
        (
            (three, three, [0.5] * 3),
            ValueError,
            'accuracy: at least two different values',
        ),
        (([0.5] * 3, three, three), ValueError, 'loss and accuracy: at least two different'),
    ],
)
def test_wrong_runs_are_one_line(given, error, says, unchecked):
    for f in (selector, selector_band):
        with pytest.raises(error, match=says) as e:
            f(*given)
        assert '\n' not in str(e.value)


def test_wrong_settings_are_one_line(unchecked):
    for f, how, says in (
        (selector_band, dict(resamples=1), 'resamples >= 2'),
        (selector_band, dict(level=1.0), 'level in'),
        (selector_band, dict(level=95), 'level in'),
        (selector_held_out, dict(splits=0), 'splits: at least 1'),
        (selector_held_out, dict(alpha=[]), 'alpha: finite numbers'),
    ):
        with pytest.raises(ValueError, match=says):
            f(*grid(), **how)
    with pytest.raises(TypeError, match='integer'):
        selector_held_out(*grid(), splits=2.5)
    with pytest.raises(ValueError, match='at least 6 runs'):
        selector_held_out(*grid(5))

"Probes: agreement with scikit-learn, bands for the baseline, odd data, large data"

import warnings
import numpy as np, pytest, torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from scipy.stats import spearmanr
from sklearn.neighbors import KNeighborsClassifier
from jepa_lit import probes
from jepa_lit.data import Images
from jepa_lit.datasets import load
from jepa_lit.files import Files
from jepa_lit.probes import (
    ALPHAS,
    Table,
    embed_all,
    embedding_figure,
    few_label,
    gallery,
    knn,
    linear,
    probe,
    raw_pixels,
    selector,
    selector_band,
    selector_held_out,
    standardize,
)


def clouds(n=120, m=90, d=12, classes=5, spread=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, d, generator=g)
    y = torch.arange(n + m) % classes
    z = centers[y] + spread * torch.randn(n + m, d, generator=g)
    return z[:n], y[:n], z[n:], y[n:]


@pytest.mark.parametrize('k', [1, 3, 10, 500])
def test_knn_is_scikit_learns(k):
    z, y, zt, yt = clouds()
    judge = KNeighborsClassifier(min(k, len(z)), metric='cosine', weights=lambda d: (1 - d).clip(0)).fit(
        z - z.mean(0), y
    )
    assert knn(z, y, zt, yt, k) == pytest.approx(judge.score(zt - z.mean(0), yt))


@pytest.mark.parametrize('n, d', [(40, 200), (200, 40), (50, 50)])
def test_regression_is_scikit_learns(n, d):
    z, y, zt, yt = clouds(n, 100, d)
    mean = z.mean(0)
    scale = 10 / (z - mean).square().sum(1).mean().sqrt()
    a, b = ((z - mean) * scale).double().numpy(), ((zt - mean) * scale).double().numpy()
    train, test = standardize(z, zt)
    for C in (0.03, 1.0):
        theirs = LogisticRegression(C=C, max_iter=5000, tol=1e-8).fit(a, y).predict(b)
        ours = probes.regress(train, y.numpy(), test, C)
        assert (ours == theirs).mean() >= 0.99


def test_raw_digits_lie_in_their_bands():
    data = [load('digits', size=s) for s in (8, 32)]
    found = {}
    for s, d in zip((8, 32), data):
        z, y = (
            torch.cat([f(d.train), f(d.test)]) for f in (lambda p: raw_pixels(p.pixels), lambda p: p.labels)
        )
        rows = []
        for seed in range(3):
            a, b = map(
                torch.tensor,
                train_test_split(np.arange(len(y)), test_size=0.2, random_state=seed, stratify=y),
            )
            rows.append(probe(z[a], y[a], z[b], y[b], labels=(1, 10)))
        found[s] = {k: np.mean([r[k] for r in rows]) for k in rows[0]}
    for r in found.values():
        assert 0.955 < r['linear'] < 0.985 and 0.87 < r['linear_10'] < 0.92 and 0.58 < r['linear_1'] < 0.70, (
            found
        )
    for k in ('knn', 'linear', 'linear_1', 'linear_10'):
        assert found[32][k] > found[8][k] - 0.01, found


def test_sets_too_large_for_the_whole_choose_on_a_part(monkeypatch):
    z, y, zt, yt = clouds(6000, 500, spread=1.5)
    small = linear(z, y, zt, yt)
    monkeypatch.setattr(probes, 'LARGE', 5500)
    fit, val = probes.validation(y)
    assert len(fit) + len(val) <= 5010 and not set(fit.tolist()) & set(val.tolist())
    assert abs(linear(z, y, zt, yt) - small) < 0.02 and 0 <= few_label(z, y, zt, yt, k=5)[0] <= 1


def test_odd_classes():
    z, y, zt, yt = clouds()
    y, yt = y * 100 + 7, yt * 100 + 7  # labels with gaps
    assert probe(z, y, zt, yt) == probe(z, y // 100, zt, yt // 100)
    r = probe(z[:5], y[:5], zt, yt)  # one sample a class: no validation part
    assert set(r) == {'knn', 'linear', 'linear_1', 'linear_1_sd'} and r['linear_1_sd'] == 0
    rare = torch.cat([torch.arange(len(y))[y != 7], torch.tensor([0])])  # a class with a single sample
    assert 'linear_10' in probe(z[rare], y[rare], zt, yt)


def test_arrays_are_welcome_and_nothing_random_is_touched(unchecked):
    z, y, zt, yt = clouds()
    state, np_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert probe(z.numpy(), y.numpy(), zt.numpy(), yt.numpy()) == probe(z, y, zt, yt)
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == np_state).all()


def test_embeddings_know_which_files_they_belong_to(tmp_path):
    for i in range(6):
        Image.fromarray(np.full((20, 20, 3), 40 * i, np.uint8)).save(tmp_path / f'{i}.png')
    (tmp_path / '2.png').write_bytes(b'not an image')
    files = Files([str(tmp_path / f'{i}.png') for i in range(6)], size=8)
    z, kept = embed_all(raw_pixels, files, batch=2)
    assert kept.tolist() == [0, 1, 3, 4, 5] and z.shape == (5, 3 * 64) and len(files.skipped) == 1
    assert torch.allclose(z.mean(1) * 255, 40.0 * kept, atol=0.01)
    assert len(gallery(files.select(kept), z, queries=2, k=3).axes) == 8


def test_color_gallery_and_tsne():
    x = Images(torch.randint(256, (30, 3, 8, 8), dtype=torch.uint8))
    assert len(gallery(x, raw_pixels(x.pixels), queries=3, k=2).axes) == 9
    assert embedding_figure(raw_pixels(x.pixels), torch.arange(30) % 25, how='tsne').axes


def test_table_in_three_forms():
    row = dict(knn=0.9, linear=0.95, linear_1=0.5, linear_1_sd=0.01)
    t = Table(dict(raw=row, trained={**row, 'knn': 0.99}))
    assert repr(t).splitlines()[-1].split()[-3:] == ['+9.0', '+0.0', '+0.0'] and '50.0 ± 1.0' in repr(t)
    assert t._repr_html_().count('<tr>') == 4 and t._repr_markdown_().splitlines()[1] == '|:--|--:|--:|--:|'
    assert '<' not in Table({'<b>': row})._repr_html_().split('<td>')[1].split('</td>')[0]


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
        ((three[:1],) * 3, ValueError, 'loss: one value a run, of at least 3 runs'),
        ((three[:2],) * 3, ValueError, r'got shape \(2,\)'),
        (([[0.1] * 3] * 3, three, three), ValueError, r'got shape \(3, 3\)'),
        ((three, three, three + [0.4]), ValueError, 'got 3, 3 and 4'),
        (
            (three, three, [0.1, np.nan, 0.3]),
            ValueError,
            'accuracy: finite numbers expected, got 1 of 3 that are not, first at 1',
        ),
        (([0.1, 0.2, np.inf], three, three), ValueError, 'loss: finite'),
        (
            (three, [0.0, 0.1, 0.2], three, 0.4),
            ValueError,
            'lamb: weights above 0 expected where alpha is not 0, got 0 in run 0',
        ),
        (
            (three, [-0.1, 0.1, 0.2], three),
            ValueError,
            r'lamb: weights in \[0, 1\] expected, got -0.1 to 0.2',
        ),
        ((three, [1, 10, 100], three), ValueError, 'lamb: weights in'),
        ((['a', 'b', 'c'], three, three), TypeError, 'loss: numbers expected'),
        ((three, three, None), TypeError, 'accuracy: numbers expected'),
        ((three, three, [[1], [2, 3], 4]), TypeError, 'accuracy: numbers expected'),
        ((three, three, [True, False, True]), TypeError, 'accuracy: numbers expected'),
        (([1j, 2, 3], three, three), TypeError, 'loss: numbers expected'),
        ((three, three, three, 'x'), TypeError, 'alpha: numbers expected'),
        ((three, three, three, np.nan), ValueError, 'alpha: finite'),
        ((three, three, three, []), ValueError, 'alpha: a number, or a list'),
        (
            (three, three, [0.5] * 3),
            ValueError,
            'accuracy: at least two different values expected, all 3 are 0.5',
        ),
        (([0.5] * 3, three, three), ValueError, 'loss: at least two different'),
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
        (selector_held_out, dict(splits=0), 'splits: a whole number'),
        (selector_held_out, dict(splits=2.5), 'splits: a whole number'),
        (selector_held_out, dict(alpha=[]), 'alpha: a number'),
    ):
        with pytest.raises(ValueError, match=says):
            f(*grid(), **how)
    with pytest.raises(ValueError, match='at least 6 runs'):
        selector_held_out(*grid(5))

"Probes: agreement with scikit-learn, bands for the baseline, odd data, large data"

import numpy as np, pytest, torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from jepa_lit import probes
from jepa_lit.data import Images
from jepa_lit.datasets import load
from jepa_lit.files import Files
from jepa_lit.probes import Table, embed_all, few_label, knn, linear, probe, raw_pixels, ridge, standardize


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


def test_table_in_three_forms():
    row = dict(knn=0.9, linear=0.95, linear_1=0.5, linear_1_sd=0.01)
    t = Table(dict(raw=row, trained={**row, 'knn': 0.99}))
    assert repr(t).splitlines()[-1].split()[-3:] == ['+9.0', '+0.0', '+0.0'] and '50.0 ± 1.0' in repr(t)
    html, markdown = t._repr_html_(), t._repr_markdown_().splitlines()
    assert html.count('<tr>') == 4 and len({len(line) for line in markdown}) == 1
    assert [part[0] + part[-1] for part in markdown[1].strip('|').split('|')] == [':-', '-:', '-:', '-:']
    assert '<b>' not in Table({'<b>': row})._repr_html_() and '&lt;b&gt;' in Table({'<b>': row})._repr_html_()


@pytest.mark.parametrize('n, d, classes', [(120, 12, 5), (30, 60, 3)])
def test_ridge_is_scikit_learns(n, d, classes):
    from sklearn.linear_model import Ridge

    z, y, zt, yt = clouds(n, 90, d, classes)
    a, b = ((v - z.mean(0)) / (z.std(0) + 1e-6) for v in (z, zt))
    onehot = torch.nn.functional.one_hot(y, classes).double()
    judge = Ridge(alpha=1e-2 * n).fit(a.double(), onehot)
    assert ridge(z, y, zt, yt) == pytest.approx((judge.predict(b.double()).argmax(1) == yt.numpy()).mean())

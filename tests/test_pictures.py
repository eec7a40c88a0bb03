"Figures: what they show, of which data"

import numpy as np, pytest, torch
from PIL import Image
from jepa_lit.data import Images
from jepa_lit.files import Files
from jepa_lit.pictures import curves_figure, embedding_figure, gallery, plane
from jepa_lit.probes import embed_all, raw_pixels


def test_a_gallery_of_files(tmp_path):
    for i in range(6):
        Image.fromarray(np.full((20, 20, 3), 40 * i, np.uint8)).save(tmp_path / f'{i}.png')
    (tmp_path / '2.png').write_bytes(b'not an image')
    files = Files([str(tmp_path / f'{i}.png') for i in range(6)], size=8)
    z, kept = embed_all(raw_pixels, files, batch=2)
    assert len(gallery(files.select(kept), z, queries=2, k=3).axes) == 8


def test_color_gallery_and_tsne():
    x = Images(torch.randint(256, (30, 3, 8, 8), dtype=torch.uint8))
    assert len(gallery(x, raw_pixels(x.pixels), queries=3, k=2).axes) == 9
    assert embedding_figure(raw_pixels(x.pixels), torch.arange(30) % 25, how='tsne').axes


def test_the_plane_is_that_of_scikit_learn():
    from sklearn.decomposition import PCA

    z = torch.randn(60, 9, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 10)
    theirs = torch.from_numpy(PCA(2).fit_transform(z.double().numpy()))
    torch.testing.assert_close(plane(z).abs(), theirs.abs())


def test_nothing_random_is_touched():
    x = Images(torch.randint(256, (30, 1, 8, 8), dtype=torch.uint8))
    z = raw_pixels(x.pixels)
    state, np_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    gallery(x, z), embedding_figure(z), embedding_figure(z, how='tsne')
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == np_state).all()


def line(step, **more):
    return dict(step=step, loss=1.0 / (step + 1), lr=0.1, **more)


def test_curves_show_what_the_log_holds():
    lejepa = [line(s, prediction=0.5, sigreg=2.0) | (dict(knn=0.5) if s % 2 else {}) for s in range(6)]
    fig = curves_figure(lejepa, healthy=1.05)
    assert [ax.get_title() for ax in fig.axes] == [
        'loss',
        'prediction',
        'SIGReg',
        'online kNN',
        'learning rate',
    ]
    assert [len(ax.lines) for ax in fig.axes] == [1, 1, 2, 1, 1]  # SIGReg has its healthy value
    assert fig.axes[3].lines[0].get_xdata().tolist() == [1, 3, 5]
    assert '1.05' in fig.axes[2].get_legend().get_texts()[0].get_text()


def test_i_jepas_loss_is_its_prediction_and_has_baselines():
    ijepa = [line(s, prediction=0.5, zero=0.4, feature_mean=0.3, position_mean=0.2) for s in range(4)]
    fig = curves_figure(ijepa)
    assert [ax.get_title() for ax in fig.axes] == ['loss', 'learning rate'] and len(fig.axes[0].lines) == 4
    regularized = curves_figure([{**l, 'regularizer': 0.1} for l in ijepa])
    assert [len(ax.lines) for ax in regularized.axes] == [1, 4, 1, 1]


def test_runs_side_by_side_are_named_once():
    logs = {'a': [line(0), line(1)], 'b': [line(0)], 'empty': []}
    fig = curves_figure(logs)
    assert [t.get_text() for t in fig.axes[0].get_legend().get_texts()] == ['a', 'b']
    assert fig.axes[1].get_legend() is None
    assert not curves_figure([]).axes and not curves_figure({}).axes  # nothing to show yet


def test_misuse_is_one_line(unchecked):
    z = torch.randn(10, 4)
    for f, says in (
        (
            lambda: gallery(Images(torch.zeros(9, 1, 8, 8, dtype=torch.uint8)), z),
            '9 expected, one an image, got 10',
        ),
        (lambda: embedding_figure(z, how='umap'), "'pca' or 'tsne' expected, got 'umap'"),
        (lambda: embedding_figure(z, torch.zeros(3)), '10 expected, one for each embedding, got 3'),
    ):
        with pytest.raises(ValueError, match=says) as e:
            f()
        assert '\n' not in str(e.value)

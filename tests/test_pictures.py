"Figures: what they show, of which data"

import warnings
from pathlib import Path
import numpy as np, pytest, torch
from matplotlib import cbook
from PIL import Image
from jepa_lit.data import Images
from jepa_lit.files import Files
from jepa_lit.pictures import as_label, curves_figure, embedding_figure, gallery, plane, save_figure
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
        (lambda: embedding_figure(z, how='umap'), "'umap': there are pca, tsne"),
        (lambda: embedding_figure(z, torch.zeros(3)), '10 expected, one for each embedding, got 3'),
    ):
        with pytest.raises(ValueError, match=says) as e:
            f()
        assert '\n' not in str(e.value)


NAMES = [
    '$x_1$', '$', '$$', 'a$b$c', r'\$', r'\alpha', r'$\frac{$', '_hidden', '__', '%s %d', '<b>&amp;', '{}', '^_^', 'x' * 500,
    'two\nlines', '\ttab', ' ', '猫', 'قط', '😀', '\udcff', '\x00\x1b[2J', '-->', '"', "l'été",
]  # fmt: skip


@pytest.mark.parametrize('name', NAMES)
def test_names_are_text(name, tmp_path):
    "Whatever a class or a run is called: it is in the legend, is no mathematics, and is drawn without a word"
    log = [line(0), line(1)]
    figures = [
        embedding_figure(torch.randn(8, 4), torch.arange(8) % 2, (name, 'other')),
        curves_figure({name: log, 'other': log}),
    ]
    for i, figure in enumerate(figures):
        legend = figure.legends[0] if figure.legends else figure.axes[0].get_legend()
        shown = [text.get_text() for text in legend.get_texts()]
        assert shown == [as_label(name), 'other'] and len(shown[0]) < 60
        assert not [text for text in legend.get_texts() if cbook.is_math_text(text.get_text())]
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            save_figure(figure, tmp_path / f'{i}.png')
            save_figure(figure, tmp_path / f'{i}.svg')


def test_a_damaged_log_is_drawn_as_far_as_it_is_one():
    lines = [
        line(0),
        {'step': 1, 'loss': 'x'},
        {'step': 2, 'loss': [1], 'lr': None},
        {'step': 3, 'loss': 0.5},
    ]
    assert curves_figure(lines).axes[0].lines[0].get_xdata().tolist() == [0, 3]


def test_a_figure_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    figure = curves_figure([line(0), line(1)])
    save_figure(figure, tmp_path / 'a.png')
    before = (tmp_path / 'a.png').read_bytes()

    def half(path, format):
        Path(path).write_bytes(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(figure, 'savefig', half)
    with pytest.raises(OSError, match='No space left'):
        save_figure(figure, tmp_path / 'a.png')
    assert (tmp_path / 'a.png').read_bytes() == before and len(list(tmp_path.iterdir())) == 1

"Masks: sizes and places of blocks, choices, what travels with a batch, the paper's rivals; what is refused"

import inspect, math, pickle
import numpy as np, pytest, torch
from jepa_lit.data import generator
from jepa_lit.masks import (
    coverage,
    Masks,
    Random,
    Rasterized,
    SingleBlock,
    block_patches,
    block_size,
    choose,
    trapezoid,
)
from jepa_lit.sampler import MultiBlock
from mask_checks import excess, sound


def test_choices_are_uniform_among_free_patches():
    free = np.tile(np.arange(30) % 3 > 0, (30_000, 1))
    picks = choose(free, 7, True, generator('cut'))
    assert (
        (np.diff(picks) > 0).all()
        and free[0, picks].all()
        and excess(np.bincount(picks.ravel(), minlength=30)[free[0]]) < 4.5
    )
    wide = choose(np.ones((3, 5000), bool), 20, True, generator(0))  # numbers beyond 12 bits
    assert wide.max() < 5000 and (np.diff(wide) > 0).all() and len(np.unique(wide)) > 50


@pytest.mark.parametrize('grid', [(14, 14), (2, 32), (7, 3), (30, 2)])
def test_areas_on_rectangles(grid):
    for s in np.linspace(0.15, 0.2, 5):
        for a in np.linspace(0.75, 1.5, 5):
            h, w = block_size(s, a, grid)
            assert (
                1 <= h <= grid[0]
                and 1 <= w <= grid[1]
                and abs(h * w - s * math.prod(grid)) <= 0.5 * (h + w) + 0.5
            )


def test_masks_travel():
    m = MultiBlock(6, cut='pad')(4, generator(0))
    assert (
        all(x.dtype == y.dtype and x.shape == y.shape for x, y in zip(m.to('meta'), m))
        and Masks(m.context, m.targets).to('meta').mask is None
    )
    s = pickle.loads(pickle.dumps(MultiBlock(6)))
    assert torch.equal(s(4, generator(0)).context, MultiBlock(6)(4, generator(0)).context)


def test_names_and_order():
    assert Masks._fields == ('context', 'targets', 'mask')
    for sampler in (MultiBlock, Random, SingleBlock, Rasterized):
        assert list(inspect.signature(sampler.__call__).parameters) == ['self', 'batch', 'generator']
    blocks = block_patches(np.array([[[1, 2]], [[0, 0]]]), (2, 2), (4, 5))
    assert blocks.tolist() == [[[7, 8, 12, 13], [0, 1, 5, 6]]]


@pytest.mark.parametrize('shape', [(2, 2), (3, 3), (2, 7), (5, 4), (14, 14)])
def test_rivals(shape):
    n = math.prod(shape)
    for s, m in ((Random(shape), 1), (SingleBlock(shape), 1), (Rasterized(shape), 3)):
        masks = s(300, generator(shape[0]))
        assert (
            sound(masks, n, 300, m)
            and s.n_targets == m
            and s.fallbacks == s.redraws == 0
            and masks.mask is None
        )
        if m == 1:
            assert masks.context.shape[1] + masks.targets.shape[2] == n


def test_rivals_are_uniform():
    m = Random(6)(20_000, generator(0))
    assert excess(np.bincount(m.context.flatten(), minlength=36)) < 4.5
    m = Rasterized(6)(20_000, generator(0))
    assert excess(np.bincount(m.context[:, 0])[[0, 3, 18, 21]]) < 4.5
    m = SingleBlock(6, scale=0.25, aspect=(1, 1))(20_000, generator(0))
    assert excess(np.bincount(m.targets[0, :, 0], minlength=36).reshape(6, 6)[:4, :4]) < 4.5
    assert [round(s(64, generator(0)).context.shape[1] / 196, 1) for s in (Random(14), SingleBlock(14))] == [
        0.4,
        0.4,
    ]  # the paper's Table 6
    assert Rasterized(14)(1).context.shape[1] / 196 == 0.25


@pytest.mark.parametrize(
    'make, kind, words',
    [
        (lambda: Random(14, ratio=0), ValueError, 'ratio'),
        (lambda: Random(1), ValueError, 'grid'),
        (lambda: SingleBlock(14, scale=1), ValueError, 'scale'),
        (lambda: SingleBlock(1), ValueError, 'grid'),
        (lambda: Rasterized((1, 4)), ValueError, 'grid'),
        (lambda: trapezoid(3, 4), ValueError, 'size'),
        (lambda: Random(4)(-1), ValueError, 'batch'),
        (lambda: Rasterized(4)(0), ValueError, 'batch'),
        (lambda: Random(6)(4).rows(2, 5), ValueError, 'rows'),
        (lambda: Random(6)(4).rows(3, 3), ValueError, 'rows'),
        (lambda: coverage(torch.tensor([[36]]), 6), ValueError, 'index'),
    ],
)
def test_refused_in_one_line(make, kind, words, unchecked):
    with pytest.raises(kind) as e:
        make()
    assert words in str(e.value) and '\n' not in str(e.value)

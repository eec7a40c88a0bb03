"The sampler of I-JEPA: every grid, every cut, in bounded time; uniform places; the reference's biases; what is refused"

import inspect, math
import numpy as np, pytest, torch
from jepa_lit.data import generator
from jepa_lit.masks import Random, Rasterized, SingleBlock, coverage, places, trapezoid
from jepa_lit.sampler import Layout, MasksConfig, MultiBlock, free_patches, largest_context, rectangle
from mask_checks import excess, real, sound

CUTS = 'random', 'first', 'pad'
SQUARE = dict(
    target_scale=(36 / 196, 36 / 196), target_aspect=(1, 1), context_scale=(169 / 196, 169 / 196), min_keep=1
)  # 6x6 and 13x13 at 14x14


# ---- every grid


def test_every_rectangle_ends(unchecked):
    for rows in range(2, 33):
        for cols in range(2, 33):
            s = MultiBlock((rows, cols), cut=CUTS[(rows + cols) % 3])
            m = s(4, generator(rows, cols))
            assert sound(m, rows * cols, 4) and real(m).sum(1).min() >= s.min_keep
            assert s.redraws <= 4 * s.tries


def keeps(n, every=1):
    "Every min_keep of a square grid: those that are possible end and are kept, the next one is refused"
    best = largest_context(MultiBlock(n).roomiest)
    for least in [*range(0, best, every), best]:
        s = MultiBlock(n, min_keep=least)
        m = s(2, generator(n, least))
        assert m.context.shape[1] >= max(1, least) and s.redraws <= 2 * s.tries
        yield m
    with pytest.raises(ValueError, match='min_keep'):
        MultiBlock(n, min_keep=best + 1)


@pytest.mark.parametrize('n', [2, 3, 4, 5, 6, 7, 8, 10, 12, 14])
def test_every_min_keep_ends(n, unchecked):
    for m in keeps(n):
        assert sound(m, n * n, 2)


@pytest.mark.parametrize('n', [16, 19, 24, 28, 32])
def test_min_keep_on_large_grids(n, unchecked):
    for m in keeps(n, n):
        assert sound(m, n * n, 2)


@pytest.mark.slow
def test_every_min_keep_of_every_square_ends(unchecked):
    for n in range(2, 33):
        for m in keeps(n):
            assert sound(m, n * n, 2)


def test_published_ends_or_refuses_on_every_grid(unchecked):
    for n in range(2, 33):
        for least in (None, 1, 4, 10):
            try:
                s = MultiBlock(n, min_keep=least, published=True)
            except ValueError as e:
                assert '\n' not in str(e)
                continue
            assert sound(s(16, generator(n)), n * n, 16) and s.redraws <= 16 * s.tries
    for n in range(3, 33):
        MultiBlock(n, published=True)  # the default always works from 3x3 up


@pytest.mark.parametrize('shape', [(1, 8), (8, 1), (1, 2), (3, 40), (70, 70)])
def test_odd_shapes(shape):
    for cut in CUTS:
        assert sound(MultiBlock(shape, cut=cut)(5, generator(0)), math.prod(shape), 5)


@pytest.mark.parametrize('batch', [1, 2, 3, 1000, 5000])
@pytest.mark.parametrize('cut', CUTS)
def test_any_batch(batch, cut):
    assert sound(MultiBlock(9, cut=cut)(batch, generator(0)), 81, batch)


@pytest.mark.parametrize('m', [1, 2, 3, 6, 9])
def test_any_number_of_targets(m):
    assert sound(MultiBlock(10, n_targets=m)(50, generator(0)), 100, 50, m)


# ---- distributions


@pytest.mark.parametrize(
    'grid, target, context',
    [((14, 14), (6, 6), (13, 13)), ((8, 8), (3, 4), (7, 7)), ((5, 12), (2, 4), (5, 10))],
)
def test_places_are_uniform_and_all_reached(grid, target, context):
    offsets, _ = MultiBlock(grid, min_keep=1).place(20_000, Layout(grid, target, context), generator('chi'))
    for o, size in [(offsets[:, i], target) for i in range(4)] + [(offsets[:, 4], context)]:
        many = places(size, grid)
        counts = np.bincount(np.ravel_multi_index(tuple(o.T), many), minlength=math.prod(many))
        assert len(counts) == math.prod(many) and counts.min() > 0 and excess(counts) < 4.5
    _, pairs = np.unique(
        offsets[:, 0, 0] * 100 + offsets[:, 1, 1], return_counts=True
    )  # blocks are independent
    assert excess(pairs) < 4.5


def test_coverage_is_the_product_of_trapezoids():
    n, m = 20_000, MultiBlock(14, **SQUARE, cut='pad')(20_000, generator('coverage'))
    p, q = (torch.outer(trapezoid(14, s), trapezoid(14, s)) for s in (6, 13))
    for measured, exact, k in (
        (coverage(m.targets, 14), p, 4 * n),
        (coverage(m.context, 14, m.mask), q * (1 - p) ** 4, n),
    ):
        far = (measured - exact) / (exact * (1 - exact) / k).sqrt()
        assert far.abs().max() < 4.5 and torch.equal(exact, exact.flip(0)) and torch.equal(exact, exact.T)


@pytest.mark.parametrize('cut', ['random', 'pad'])
def test_no_side_is_preferred(cut):
    s = MultiBlock(14, cut=cut)
    maps = torch.stack(
        [coverage(m.context, 14, real(m)) for m in (s(128, generator('flip', i)) for i in range(60))]
    ).mean(0)
    for other in (maps.flip(0), maps.flip(1)):
        assert (maps - other).abs().max() < 0.04
    assert maps.min() > 0.03


def test_scale_and_aspect_are_independent(unchecked):
    s = MultiBlock(14)
    sizes = [s.sizes(generator('size', i)).target for i in range(2000)]
    assert {(7, 4), (5, 5), (5, 7), (6, 7), (7, 6), (8, 5)} <= set(sizes)
    areas, ratios = np.array([h * w for h, w in sizes]), np.array([h / w for h, w in sizes])
    assert abs(np.corrcoef(areas, ratios)[0, 1]) < 0.15 and abs(areas.mean() / 196 - 0.175) < 0.004
    published = MultiBlock(14, published=True)
    theirs = np.array([published.sizes(generator(i)).target for i in range(500)])
    assert np.corrcoef(theirs.prod(1), theirs[:, 0] / theirs[:, 1])[0, 1] > 0.45


# ---- cuts


@pytest.mark.parametrize('limit', [None, 12, 30])
def test_the_three_cuts_share_their_places(limit):
    first, rand, pad = (
        MultiBlock(14, cut=c, max_context=limit)(64, generator('same')) for c in ('first', 'random', 'pad')
    )
    whole = MultiBlock(14, cut='pad')(64, generator('same'))
    assert torch.equal(first.targets, rand.targets) and torch.equal(first.targets, pad.targets)
    k = min(int(whole.mask.sum(1).min()), limit or 196)
    assert first.context.shape == rand.context.shape == (64, k) and torch.equal(
        first.context, whole.context[:, :k]
    )
    assert pad.context.shape[1] == min(whole.context.shape[1], limit or 196) and torch.equal(
        pad.mask.sum(1), whole.mask.sum(1).clamp(max=limit or 196)
    )
    for i in range(64):
        assert set(rand.context[i].tolist()) <= set(whole.context[i][whole.mask[i]].tolist())


def test_rectangle_by_hand():
    free = np.array([[1, 0, 1, 1], [0, 1, 0, 0]], bool)
    assert rectangle(free, 'first')[0].tolist() == [[0], [1]]
    index, mask = rectangle(free, 'pad')
    assert index.tolist() == [[0, 2, 3], [1, 1, 1]] and mask.tolist() == [[True] * 3, [True, False, False]]


def test_max_context_makes_the_length_independent_of_the_batch():
    s = MultiBlock(14, max_context=20, cut='pad')
    assert {s(b, generator(b)).context.shape[1] for b in (1, 7, 300)} == {20}


# ---- seeds and ranks


@pytest.mark.parametrize(
    'make',
    [
        lambda: MultiBlock(12),
        lambda: MultiBlock(12, cut='pad'),
        lambda: MultiBlock(12, published=True),
        lambda: Random(12),
        lambda: SingleBlock(12),
        lambda: Rasterized(12),
    ],
)
def test_seed_decides_and_the_global_one_is_left_alone(make):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a, b, c = (
        make()(32, generator(1, 'masks', 5)),
        make()(32, generator(1, 'masks', 5)),
        make()(32, generator(1, 'masks', 6)),
    )
    assert (
        torch.equal(torch.get_rng_state(), before)
        and torch.equal(a.context, b.context)
        and torch.equal(a.targets, b.targets)
    )
    assert a.targets.shape != c.targets.shape or not torch.equal(a.targets, c.targets)
    s = make()
    s(8, generator(3))
    assert torch.equal(s(32, generator(1, 'masks', 5)).targets, a.targets)  # no state but the counters
    torch.manual_seed(7)
    d = make()(8)
    torch.manual_seed(7)
    assert torch.equal(make()(8).targets, d.targets)


@pytest.mark.parametrize('cut', CUTS)
@pytest.mark.parametrize('ranks', [1, 2, 3, 8])
def test_slices_of_ranks_joined_are_the_whole(cut, ranks):
    s, b = MultiBlock(10, cut=cut), 24
    one = s(b, generator(0, 'masks', 3))
    parts = [
        MultiBlock(10, cut=cut)(b, generator(0, 'masks', 3)).rows(b * r // ranks, b * (r + 1) // ranks)
        for r in range(ranks)
    ]
    assert torch.equal(torch.cat([p.context for p in parts]), one.context) and torch.equal(
        torch.cat([p.targets for p in parts], 1), one.targets
    )
    assert one.mask is None if cut != 'pad' else torch.equal(torch.cat([p.mask for p in parts]), one.mask)


# ---- the largest context, redraws, fallbacks


@pytest.mark.parametrize('published', [False, True])
def test_largest_context_is_the_most_of_all_places(published):
    def every(size, grid):
        rows, cols = places(size, grid, published)
        return [(i, j) for i in range(rows) for j in range(cols)]

    for grid in ((3, 3), (4, 5), (6, 4)):
        for t in ((1, 1), (2, 2), (1, 3), (2, 3)):
            for c in ((2, 2), (2, 3), (3, 3), (grid[0] - published, grid[1] - published)):
                pairs = [[p, q] for p in every(t, grid) for q in every(c, grid)]
                if pairs:
                    layout = Layout(grid, t, c, 1, published)
                    assert largest_context(layout) == free_patches(np.array(pairs), layout).sum(1).max()


def test_fallback_is_counted_and_disjoint():
    s = MultiBlock(8, min_keep=55)
    m = s(100, generator(0))
    assert (
        sound(m, 64, 100) and m.context.shape[1] >= 55 and s.fallbacks > 90 and s.redraws >= 19 * s.fallbacks
    )
    easy = MultiBlock(14)
    easy(2000, generator(0))
    assert easy.fallbacks == 0 and easy.redraws < 20
    tiny = MultiBlock(2)
    assert sound(tiny(500, generator(0)), 4, 500) and tiny.redraws > 0
    odd = MultiBlock(
        10,
        target_scale=(0.1, 0.9),
        min_keep=largest_context(MultiBlock(10, target_scale=(0.1, 0.9)).roomiest),
    )
    assert sound(odd(30, generator(0)), 100, 30) and odd.fallbacks > 0  # here sizes are replaced too


def test_default_min_keep():
    assert [MultiBlock(n).min_keep for n in (2, 4, 6, 8, 14, 16)] == [1, 1, 2, 4, 11, 14]
    assert (
        MultiBlock(14, published=True).min_keep == 10
        and MultiBlock(14, n_targets=8, target_scale=(0.5, 0.6)).min_keep == 11
    )


# ---- the reference's habits


def test_published_shapes(unchecked):
    s, u = MultiBlock(14, published=True), np.linspace(0, 1, 501)
    assert s.cut == 'first' and {s.layout(x, 0, 0).target for x in u} == {
        (5, 6),
        (6, 6),
        (6, 5),
        (7, 5),
        (8, 5),
    }
    for n in range(4, 19):
        s = MultiBlock(n, published=True)
        assert {s.layout(0, 0, x).context for x in (0, 0.3, 0.6, 1)} == {(n - 1, n - 1)} and places(
            (n - 1, n - 1), (n, n), True
        ) == (1, 1)
    large = MultiBlock(28, published=True)
    big = [large.layout(0, 0, x).context[0] for x in np.linspace(0, 1, 1001)]
    assert set(big) == {26, 27} and abs(big.count(27) / 1001 - 0.69) < 0.01


def test_published_coverage():
    s, full = MultiBlock(14, published=True), MultiBlock(14, published=True, cut='pad')
    draws, whole = ([x(128, generator('pub', i)) for i in range(60)] for x in (s, full))
    seen = torch.stack([coverage(m.context, 14) for m in draws]).mean(0)
    hidden = torch.stack([coverage(m.targets, 14) for m in draws]).mean(0)
    assert torch.allclose(
        seen.mean(1),
        torch.tensor([0.75, 0.60, 0.48, 0.38, 0.28, 0.22, 0.20, 0.19, 0.20, 0.20, 0.15, 0.08, 0.02, 0]),
        atol=0.03,
    )
    for x in (seen, hidden):
        assert not x[13].any() and not x[:, 13].any()
    assert (
        abs(np.mean([m.context.shape[1] for m in draws]) - 52) < 2.5
        and abs(np.mean([m.mask.sum(1).double().mean() for m in whole]) - 82) < 2
    )


@pytest.mark.parametrize('n, never', [(6, 11), (8, 15), (14, 27)])
def test_published_never_uses_the_last_row_and_column(n, never):
    m = MultiBlock(n, published=True, cut='pad')(4000, generator(n))
    assert ((coverage(m.context, n, m.mask) == 0) & (coverage(m.targets, n) == 0)).sum() == never
    ours = MultiBlock(n, cut='pad')(4000, generator(n))
    assert (coverage(ours.context, n, ours.mask) > 0).all() and (coverage(ours.targets, n) > 0).all()


@pytest.mark.parametrize('n, hangs, ends', [(8, 10, 8), (6, 4, 3)])
def test_published_hangs_are_refused(n, hangs, ends):
    with pytest.raises(ValueError, match='for ever'):
        MultiBlock(n, published=True, min_keep=hangs)
    assert sound(MultiBlock(n, published=True, min_keep=ends)(200, generator(0)), n * n, 200)
    MultiBlock(12, published=True, min_keep=10)


# ---- refused


@pytest.mark.parametrize(
    'make, kind, words',
    [
        (lambda: MultiBlock(1), ValueError, 'grid'),
        (lambda: MultiBlock((14,)), ValueError, 'grid'),
        (lambda: MultiBlock((0, 4)), ValueError, 'grid'),
        (lambda: MultiBlock(3.5), ValueError, 'grid'),
        (lambda: MultiBlock('14'), ValueError, 'grid'),
        (lambda: MultiBlock(2, published=True), ValueError, 'grid'),
        (lambda: MultiBlock((1, 9), published=True), ValueError, 'grid'),
        (lambda: MultiBlock(14, n_targets=0), ValueError, 'n_targets'),
        (lambda: MultiBlock(14, target_scale=0.2), ValueError, 'target_scale'),
        (lambda: MultiBlock(14, target_scale=(0.2, 0.1)), ValueError, 'target_scale'),
        (lambda: MultiBlock(14, target_scale=(0.1, 1.1)), ValueError, 'target_scale'),
        (lambda: MultiBlock(14, target_scale=(0, 0.1)), ValueError, 'target_scale'),
        (lambda: MultiBlock(14, target_scale=(float('nan'), 0.2)), ValueError, 'target_scale'),
        (lambda: MultiBlock(14, target_aspect=(1, math.inf)), ValueError, 'target_aspect'),
        (lambda: MultiBlock(14, target_aspect='0.75'), ValueError, 'target_aspect'),
        (lambda: MultiBlock(14, context_scale=(0.5,)), ValueError, 'context_scale'),
        (lambda: MultiBlock(14, cut='last'), ValueError, 'cut'),
        (lambda: MultiBlock(14, min_keep=-1), ValueError, 'min_keep'),
        (lambda: MultiBlock(14)(0), ValueError, 'batch'),
        (lambda: MultiBlock(14, min_keep=196), ValueError, 'min_keep'),
        (lambda: MultiBlock(14, max_context=0), ValueError, 'max_context'),
        (lambda: MultiBlock(14, max_context=10), ValueError, 'max_context'),
        (lambda: MultiBlock(14, target_scale=(1, 1)), ValueError, 'grid'),
    ],
)
def test_refused_in_one_line(make, kind, words, unchecked):
    with pytest.raises(kind) as e:
        make()
    assert words in str(e.value) and '\n' not in str(e.value)


# ---- what others rely on


def test_a_recipe_names_its_sampler():
    for name, kind in (('multiblock', MultiBlock), ('random', Random), ('block', SingleBlock)):
        assert type(MasksConfig(name).sampler((6, 5))) is kind
    assert type(MasksConfig('rasterized').sampler(6)) is Rasterized
    made = MasksConfig(n_targets=2, cut='pad', max_context=9, min_keep=3).sampler(7)
    assert (made.n_targets, made.cut, made.max_context, made.min_keep) == (2, 'pad', 9, 3)
    same = MultiBlock(7, n_targets=2, cut='pad', max_context=9, min_keep=3)
    assert torch.equal(made(5, generator(0)).context, same(5, generator(0)).context)


def test_names_and_order():
    names = list(inspect.signature(MultiBlock).parameters)
    assert names[:9] == [
        'grid',
        'n_targets',
        'target_scale',
        'target_aspect',
        'context_scale',
        'min_keep',
        'cut',
        'max_context',
        'published',
    ]

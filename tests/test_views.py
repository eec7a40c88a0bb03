"Views: shapes, devices, seeds and settings beyond what their chapter shows"

import json, math
from dataclasses import asdict
import pytest, torch, torchvision.transforms.functional as TF
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop, v2
from jepa_lit import views
from jepa_lit.views import CROP, VIEWS, AugmentConfig, MultiCrop, ViewsConfig, boxes, cut, taps

STILL = dict(
    global_views=2,
    local_views=0,
    global_scale=(1.0, 1.0),
    aspect=(1.0, 1.0),
    flip=0.0,
    jitter=(0.0, 0.0, 0.0, 0.0),
    gray=0.0,
    blur=0.0,
    solarize=0.0,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(b=3, c=3, h=32, w=32, seed=0):
    return torch.randint(256, (b, c, h, w), generator=seeded(seed), dtype=torch.uint8)


@pytest.mark.parametrize('name', VIEWS)
@pytest.mark.parametrize('shape', [(1, 8, 8), (1, 32, 32), (3, 32, 32), (3, 40, 28), (4, 17, 17)])
def test_any_shape(name, shape):
    make, x = MultiCrop(**VIEWS[name]), images(2, *shape)
    out, sizes = make(x, seeded()), make.sizes(min(shape[1:]))
    assert [tuple(v.shape) for v in out] == [
        (n, 2, shape[0], s, s) for n, s in zip((make.global_views, make.local_views), sizes)
    ]
    for v in out:
        assert v.dtype == torch.float32 and v.isfinite().all() and 0 <= v.min() and v.max() <= 1


@pytest.mark.parametrize('name', VIEWS)
def test_seed_decides_and_nothing_else_is_touched(name):
    make, x = MultiCrop(**VIEWS[name]), images()
    before, state, kept = x.clone(), torch.get_rng_state(), make(x, seeded(3))
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(x, before)
    assert all(map(torch.equal, kept, make(x, seeded(3)))) and not torch.equal(kept[0], make(x, seeded(4))[0])


def test_the_recorded_views_of_digits():
    "Seeded records were made with these: neither their law nor their order of random numbers may change"
    x = torch.arange(2 * 32 * 32).view(2, 1, 32, 32).remainder(251).to(torch.uint8)
    v = MultiCrop(**VIEWS['digits'])(x, seeded(7))[0]
    assert torch.allclose(
        v.mean((1, 2, 3, 4)),
        torch.tensor([0.43702, 0.4663, 0.40787, 0.46861, 0.35792, 0.33119, 0.38626, 0.40544]),
        atol=1e-4,
    )


def test_bytes_and_floats_agree():
    x = images()
    make = MultiCrop()
    for dtype, tol in ((torch.float32, 1e-6), (torch.float64, 1e-6), (torch.float16, 5e-3)):
        ours = make((x.double() / 255).to(dtype), seeded())
        close = [
            ((a - b).abs() > tol + 0.002 * (dtype == torch.float16)).float().mean()
            for a, b in zip(ours, make(x, seeded()))
        ]
        assert max(close) < 0.01  # solarize may flip a value at the threshold


def test_memory_layout_does_not_matter():
    x = images()
    make = MultiCrop()
    for a, b in zip(make(x.contiguous(memory_format=torch.channels_last), seeded()), make(x, seeded())):
        assert torch.allclose(a, b, atol=1e-5)


def test_settings_survive_json():
    for s in VIEWS.values():
        make = MultiCrop(**s)
        assert MultiCrop(**json.loads(json.dumps(asdict(make)))) == make and hash(make) == hash(
            MultiCrop(**s)
        )


@pytest.mark.parametrize(
    'h, w, scale', [(200, 320, (0.3, 1.0)), (32, 32, (0.05, 0.3)), (96, 24, (0.3, 1.0)), (17, 17, (0.9, 1.0))]
)
def test_boxes_have_torchvisions_law(h, w, scale, n=3000):
    torch.manual_seed(0)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(torch.empty(1, h, w), list(scale), [3 / 4, 4 / 3]) for _ in range(n)]
    )
    make = MultiCrop(
        **{**STILL, 'global_views': n, 'global_scale': scale, 'aspect': (3 / 4, 4 / 3)}, global_size=4
    )
    ours, _ = shown(make, h, w)
    for f in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2], lambda b: b[:, 0], lambda b: b[:, 1]):
        assert (
            ks_2samp(f(ours).numpy(), f(theirs).numpy(), method='asymp').statistic < 0.046
        )  # 99.7 % of pairs of samples of 3,000 from one law


def shown(make, h, w, seed=0):
    "The boxes (top, left, height, width) and mirrors that `crops` reads off the generator, by torchvision's rules"
    u = torch.rand(make.global_views, 37, generator=seeded(seed))
    sides, fitted = boxes(
        u[:, 17:].unflatten(1, (10, 2)), (h, w), make.global_scale, make.aspect, make.area, whole=True
    )
    size = (sides * torch.tensor([w, h])).round()
    room = torch.tensor([w, h]) - size
    corner = torch.where(fitted[:, None], (u[:, :2] * (room + 1)).floor(), (room / 2).floor())
    return torch.cat([corner.flip(1), size.flip(1)], 1).int(), u[:, 6] < make.flip


@pytest.mark.parametrize(
    'h, w, size, scale',
    [(40, 64, 24, (0.3, 1.0)), (40, 64, 24, (0.05, 0.3)), (97, 61, 13, (0.2, 1.0)), (16, 16, 48, (0.1, 1.0))],
)
def test_crops_are_torchvisions_one_by_one(h, w, size, scale):
    make = MultiCrop(
        **{**STILL, 'global_views': 30, 'global_scale': scale, 'aspect': (3 / 4, 4 / 3), 'flip': 0.5},
        global_size=size,
    )
    x = torch.rand(1, 3, h, w, generator=seeded(1))
    ours = make(x, seeded())[0][:, 0]
    for v, box, mirror in zip(ours, *shown(make, h, w)):
        theirs = TF.resized_crop(x[0], *box.tolist(), [size, size], antialias=True)
        assert torch.allclose(v, TF.hflip(theirs) if mirror else theirs, atol=3e-6)


@pytest.mark.parametrize('length, size', [(1, 1), (1, 7), (5, 5), (64, 9), (9, 64), (100, 99), (3, 1)])
def test_taps_are_a_resize(length, size):
    axis = torch.tensor([[0.0, 0.0]]), torch.tensor([[length] * 2]).float(), torch.tensor([[False, True]])
    index, weight = taps(*axis, size, length)
    assert index.min() >= 0 and index.max() < length and torch.allclose(weight.sum(-1), torch.ones(()))
    x = torch.rand(1, 1, length, length, generator=seeded())
    ours = cut(x.permute(0, 3, 1, 2).contiguous(), torch.tensor([0]), index, weight)
    assert torch.allclose(
        ours, TF.resize(x, [size, size], antialias=True).flip(2), atol=3e-6
    )  # the second axis, rows, is mirrored


@pytest.mark.parametrize('size, scale, kernel', [(24, (0.3, 1.0), 7), (40, (0.05, 0.3), None)])
def test_whole_chain_has_torchvisions_law(size, scale, kernel, n=400):
    torch.manual_seed(0)
    x = (
        torch.nn.functional.interpolate(
            torch.rand(1, 3, 6, 6, generator=seeded()), (48, 48), mode='bicubic'
        ).clamp(0, 1)
        * 255
    ).to(torch.uint8)
    one = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=scale),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(kernel or 17, (0.1, 2.0))]),
            v2.RandomSolarize(128, p=0.2),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    theirs = torch.stack([one(x[0]) for _ in range(n)])
    ours = MultiCrop(3 * n, 0, global_size=size, global_scale=scale, kernel=kernel)(x, seeded())[0][:, 0]
    detail = lambda v: (v[..., 1:] - v[..., :-1]).abs().mean((1, 2, 3))
    for f in (
        lambda v: v.mean((1, 2, 3)),
        lambda v: v.flatten(1).std(1),
        lambda v: (v[:, 0] - v[:, 2]).mean((1, 2)),
        detail,
        lambda v: v[:, 1, 0, 0],
        lambda v: (v.amax(1) - v.amin(1)).mean((1, 2)),
    ):
        assert (
            ks_2samp(f(ours).numpy(), f(theirs).numpy(), method='asymp').statistic < 0.11
        )  # 99.8 % of pairs of samples of 1,200 and 400 from one law


def test_pieces_do_not_matter(monkeypatch):
    x = images(6, 3, 40, 40)
    whole = MultiCrop()(x, seeded())
    monkeypatch.setitem(views.PIECE, 'cpu', 9000)
    for a, b in zip(whole, MultiCrop()(x, seeded())):
        assert torch.allclose(a, b, atol=1e-5)


def test_autocast_does_not_round_the_views():
    x = images()
    whole = MultiCrop()(x, seeded())
    with torch.autocast('cpu', torch.bfloat16):
        again = MultiCrop()(x, seeded())
    for a, b in zip(whole, again):
        assert b.dtype == torch.float32 and torch.allclose(a, b, atol=1e-5)


def test_one_image_one_view_size():
    a, b = MultiCrop(global_size=16, local_size=16)(images(1))
    assert a.shape == (2, 1, 3, 16, 16) and b.shape == (
        6,
        1,
        3,
        16,
        16,
    )  # two groups, though the sizes are equal


def test_large_images_are_averaged():
    x = torch.zeros(1, 1, 600, 600)
    x[..., ::2, :] = 1
    v = MultiCrop(**{**STILL, 'global_scale': (0.3, 1.0)}, global_size=32)(x, seeded())[0]
    assert v.std() < 0.12 and abs(v.mean() - 0.5) < 0.02


def test_zero_padding_shows_beyond_the_edge():
    v = MultiCrop(**{**STILL, 'global_scale': (4.0, 4.0), 'slack': 0.0, 'pad': 'zeros'})(
        torch.ones(1, 1, 32, 32)
    )[0]
    assert abs(v.mean() - 0.25) < 0.01 and v[..., 0, 0].max() == 0 and v[..., 16, 16].min() == 1


@pytest.mark.parametrize(
    'change, text',
    [
        (dict(global_views=0), 'global_views: Expected `int` >= 1'),
        (dict(local_views=-1), 'local_views: Expected `int` >= 0'),
        (dict(local_scale=(0, 0.3)), 'local_scale: 0 < least'),
        (dict(aspect=(2, 1)), 'aspect: 0 < least'),
        (dict(gray=-0.1), 'gray: Expected `float` >= 0'),
        (dict(gray=1.1), 'gray: Expected `float` <= 1'),
        (dict(pad='white'), "pad: Invalid enum value 'white'"),
        (dict(sigma=1.0), 'sigma: Expected `array`'),
        (dict(warp=None), 'warp: Expected `float`'),
        (dict(rotate=math.nan), 'rotate: '),
        (dict(warp_grid=1), 'warp_grid: Expected `int` >= 2'),
        (dict(kernel=6), 'kernel: an odd number'),
        (dict(kernel=0), 'kernel: Expected `int` >= 1'),
        (dict(global_size=0), 'global_size: Expected `int` >= 1'),
        (dict(global_views=2.5), 'global_views: Expected `int`'),
        (dict(global_views=1, local_views=0), 'at least two views'),
    ],
)
def test_settings_are_checked(unchecked, change, text):
    with pytest.raises(ValueError) as e:
        MultiCrop(**change)
    assert text in str(e.value) and '\n' not in str(e.value)


@pytest.mark.gpu
@pytest.mark.parametrize('name', VIEWS)
def test_device_does_not_matter(name):
    make, x = MultiCrop(**VIEWS[name]), images()
    for a, b in zip(make(x, seeded()), make(x.cuda(), seeded())):
        assert ((a - b.cpu()).abs() > 1e-4).float().mean() < 0.01


@pytest.mark.parametrize(
    'name, value, said',
    [
        ('jitter', (float('nan'), 0, 0, 0), r'in \[0, 1\]'),
        ('jitter', (-0.4, 0, 0, 0), r'in \[0, 1\]'),
        ('jitter', (0, 0, 0, 0.9), r'hue in \[0, 0.5\]'),
        ('jitter', (1.5, 0, 0, 0), r'brightness'),
        ('global_scale', (0.3, float('inf')), 'greatest expected'),
        ('sigma', (0.1, float('inf')), 'greatest expected'),
        ('global_size', True, 'got `bool`'),
        ('kernel', True, 'got `bool`'),
    ],
)
def test_settings_that_mean_nothing(name, value, said, unchecked):
    with pytest.raises((ValueError, TypeError), match=f'{name}: .*{said}') as e:
        MultiCrop(**{name: value})
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('name', list(VIEWS))
def test_a_seed_means_one_thing_whatever_the_default_type(name):
    images, make = (
        torch.randint(256, (3, 3, 24, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)),
        MultiCrop(**VIEWS[name]),
    )
    one = make(images, torch.Generator().manual_seed(0))
    try:
        torch.set_default_dtype(torch.float64)
        two = make(images, torch.Generator().manual_seed(0))
        after = torch.get_default_dtype()
    finally:
        torch.set_default_dtype(torch.float32)
    assert after == torch.float64 and all(torch.equal(a, b) for a, b in zip(one, two))


@pytest.mark.parametrize('name', VIEWS)
def test_a_recipe_names_views_and_counts_them(name):
    make = ViewsConfig(name, global_views=3, local_views=2).multicrop(32)
    assert make.views == 5 and make.sizes(32) == [32, 16]
    assert make == MultiCrop(**VIEWS[name] | dict(global_views=3, local_views=2, local_size=16))
    assert ViewsConfig(name, local_views=1).multicrop(32, 8).local_size == 16
    assert ViewsConfig(name, local_size=12).multicrop(32, 8).local_size == 12


@pytest.mark.parametrize('name', [*CROP, *VIEWS])
def test_an_augmentation_is_one_view_of_each_image(name):
    augment, x = AugmentConfig(name).augmenter(24), images(4, 3)
    y = augment(x, seeded())
    assert y.shape == (4, 3, 24, 24) and y.dtype == torch.float32 and 0 <= y.min() and y.max() <= 1
    assert torch.allclose(augment(x[1:3], seeded(), (1, 4)), y[1:3], atol=1e-6)
    assert AugmentConfig().augmenter(24) is None

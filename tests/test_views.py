"Views: shapes, devices, seeds and settings beyond what chapter 11 shows"
import json, math
from dataclasses import asdict
import pytest, torch
from torchvision.transforms import RandomResizedCrop
from jepa_lit.views import VIEWS, MultiCrop, boxes

STILL = dict(global_views=2, local_views=0, global_scale=(1., 1.), aspect=(1., 1.), flip=0., jitter=(0., 0., 0., 0.), grey=0., blur=0., solarize=0.)
def seeded(seed=0): return torch.Generator().manual_seed(seed)
def images(b=3, c=3, h=32, w=32, seed=0): return torch.randint(256, (b, c, h, w), generator=seeded(seed), dtype=torch.uint8)

@pytest.mark.parametrize('name', VIEWS)
@pytest.mark.parametrize('shape', [(1, 8, 8), (1, 32, 32), (3, 32, 32), (3, 40, 28), (4, 17, 17)])
def test_any_shape(name, shape):
    make, x = MultiCrop(**VIEWS[name]), images(2, *shape)
    out, sizes = make(x, seeded()), make.sizes(min(shape[1:]))
    assert [tuple(v.shape) for v in out] == [(n, 2, shape[0], s, s) for n, s in zip((make.global_views, make.local_views), sizes)]
    for v in out: assert v.dtype == torch.float32 and v.isfinite().all() and 0 <= v.min() and v.max() <= 1

@pytest.mark.parametrize('name', VIEWS)
def test_seed_decides_and_nothing_else_is_touched(name):
    make, x = MultiCrop(**VIEWS[name]), images()
    before, state, kept = x.clone(), torch.get_rng_state(), make(x, seeded(3))
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(x, before)
    assert all(map(torch.equal, kept, make(x, seeded(3)))) and not torch.equal(kept[0], make(x, seeded(4))[0])

def test_bytes_and_floats_agree():
    x = images(); make = MultiCrop()
    for dtype, tol in ((torch.float32, 1e-6), (torch.float64, 1e-6), (torch.float16, 5e-3)):
        ours = make((x.double()/255).to(dtype), seeded())
        close = [((a - b).abs() > tol + .002*(dtype == torch.float16)).float().mean() for a, b in zip(ours, make(x, seeded()))]
        assert max(close) < .01                                    # solarize may flip a value at the threshold

def test_memory_layout_does_not_matter():
    x = images(); make = MultiCrop()
    for a, b in zip(make(x.contiguous(memory_format=torch.channels_last), seeded()), make(x, seeded())): assert torch.allclose(a, b, atol=1e-5)

def test_settings_survive_json():
    for s in VIEWS.values():
        make = MultiCrop(**s)
        assert MultiCrop(**json.loads(json.dumps(asdict(make)))) == make and hash(make) == hash(MultiCrop(**s))

def test_area_law_is_torchvisions():
    theirs = []
    torch.manual_seed(0)
    for _ in range(3000):
        _, _, h, w = RandomResizedCrop.get_params(torch.empty(1, 200, 320), [.3, 1.], [3/4, 4/3]); theirs.append((h*w/64000, w/h))
    sides = boxes(torch.rand(3000, 10, 2, generator=seeded()), (200, 320), (.3, 1.), (3/4, 4/3))
    ours = torch.stack([sides.prod(1), sides[:, 0]*320/(sides[:, 1]*200)], 1)
    q = torch.linspace(.05, .95, 10)
    for a, b in zip(ours.T, torch.tensor(theirs).T): assert (torch.quantile(a, q) - torch.quantile(b, q)).abs().max() < .035

def test_one_image_one_view_size():
    a, b = MultiCrop(global_size=16, local_size=16)(images(1))
    assert a.shape == (2, 1, 3, 16, 16) and b.shape == (6, 1, 3, 16, 16)       # two groups, though the sizes are equal

def test_large_images_are_averaged():
    x = torch.zeros(1, 1, 600, 600); x[..., ::2, :] = 1
    v = MultiCrop(**{**STILL, 'global_scale': (.3, 1.)}, global_size=32)(x, seeded())[0]
    assert v.std() < .12 and abs(v.mean() - .5) < .02

def test_zero_padding_shows_beyond_the_edge():
    v = MultiCrop(**{**STILL, 'global_scale': (4., 4.), 'slack': 0., 'pad': 'zeros'})(torch.ones(1, 1, 32, 32))[0]
    assert abs(v.mean() - .25) < .01 and v[..., 0, 0].max() == 0 and v[..., 16, 16].min() == 1

@pytest.mark.parametrize('change, error, text', [
    (dict(global_views=0), ValueError, 'global_views >= 1'), (dict(local_views=-1), ValueError, 'local_views >= 0'),
    (dict(local_scale=(0, .3)), ValueError, 'local_scale: 0 < least'), (dict(aspect=(2, 1)), ValueError, 'aspect: 0 < least'),
    (dict(grey=-.1), ValueError, 'grey: a finite number >= 0'), (dict(grey=1.1), ValueError, 'grey: a probability'), (dict(pad='white'), ValueError, 'pad: one of border'),
    (dict(sigma=1.), TypeError, 'sigma: a sequence of numbers'), (dict(warp=None), TypeError, 'warp: a number'), (dict(rotate=math.nan), ValueError, 'rotate: '),
    (dict(warp_grid=1), ValueError, 'warp_grid'), (dict(global_size=0), ValueError, 'global_size'), (dict(global_views=2.5), TypeError, 'global_views')])
def test_settings_are_checked(unchecked, change, error, text):
    with pytest.raises(error) as e: MultiCrop(**change)
    assert text in str(e.value) and '\n' not in str(e.value)

@pytest.mark.gpu
@pytest.mark.parametrize('name', VIEWS)
def test_device_does_not_matter(name):
    make, x = MultiCrop(**VIEWS[name]), images()
    for a, b in zip(make(x, seeded()), make(x.cuda(), seeded())): assert ((a - b.cpu()).abs() > 1e-4).float().mean() < .01

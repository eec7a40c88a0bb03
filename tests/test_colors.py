"Colors: torchvision's jitter in every order, hues, blurs, and settings beyond what their chapter shows"

import math
import pytest, torch, torchvision.transforms.functional as TF
from scipy.stats import chisquare
from jepa_lit.colors import ColorChanges, blur, jitter_, plan, recolor, shift_hue_


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_orders_are_uniform():
    u = torch.rand(24_000, 10, generator=seeded())
    order, place = plan(u, ColorChanges(jitter_p=0.5), 3)
    on = place >= 0
    assert abs(on.float().mean() - 0.5) < 0.02 and torch.equal(
        order[on].gather(1, place[on][:, None]), torch.full((int(on.sum()), 1), 3)
    )
    for some in (order, order[on]):
        kinds, counts = some.unique(dim=0, return_counts=True)
        if some is not order:
            assert len(kinds) == 24 and chisquare(counts.numpy()).pvalue > 1e-3
    assert (
        plan(u, ColorChanges(), 1)[0].shape == (24_000, 2)
        and (plan(u, ColorChanges(jitter=(0, 0, 0, 0)), 3)[1] == -1).all()
    )


@pytest.mark.parametrize('channels', [1, 3, 5])
def test_jitter_is_torchvisions_in_each_order(channels):
    x = torch.rand(60, channels, 6, 7, generator=seeded(1))
    u = torch.rand(60, 10, generator=seeded(2))
    cfg = ColorChanges()
    order, place = plan(u, cfg, channels)
    mean = lambda i, f: (f * i + (1 - f) * i.mean()).clamp(0, 1)
    ops = (
        TF.adjust_brightness if channels < 5 else lambda i, f: (f * i).clamp(0, 1),
        TF.adjust_contrast if channels < 5 else mean,
        TF.adjust_saturation,
        TF.adjust_hue,
    )
    for ours, i, n, steps, p in zip(jitter_(x.clone(), u, cfg), x, u, order, place):
        for k in steps.tolist() * (p >= 0):
            i = ops[k](i, (k < 3) + (2 * n[1 + k].item() - 1) * cfg.jitter[k])
        assert torch.allclose(ours, i, atol=1e-5)


def test_recolor_leaves_its_input_alone():
    x = torch.rand(50, 3, 8, 8, generator=seeded())
    before = x.clone()
    recolor(x, torch.rand(50, 10, generator=seeded()), ColorChanges(gamma=0.3))
    assert torch.equal(x, before)


def test_hue_of_grays_and_of_pure_colors():
    gray = torch.linspace(0, 1, 9).expand(1, 3, 1, 9).clone()
    assert torch.allclose(shift_hue_(gray.clone(), torch.tensor([0.3])), gray, atol=1e-6)
    pure = torch.tensor([[1.0, 1, 0, 0, 0, 1], [0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1]])[
        None, :, None
    ]  # red, yellow, green, cyan, blue, magenta
    for k in range(-3, 4):
        assert torch.allclose(shift_hue_(pure.clone(), torch.tensor([k / 6])), pure.roll(-k, -1), atol=1e-5)


@pytest.mark.parametrize('h, w', [(1, 9), (9, 1), (4, 30), (21, 21)])
def test_blur_of_any_shape(h, w):
    x = torch.rand(2, 3, h, w, generator=seeded())
    out = blur(x, torch.tensor([0.5, 3.0]))
    assert out.shape == x.shape and out.min() >= x.min() - 1e-6 and out.max() <= x.max() + 1e-6
    if min(h, w) > 13:
        assert torch.allclose(out[1], TF.gaussian_blur(x[1], 25, 3.0), atol=1e-6)


@pytest.mark.parametrize(
    'change, text',
    [
        (dict(gray=-0.1), 'gray: Expected `float` >= 0'),
        (dict(gray=1.1), 'gray: Expected `float` <= 1'),
        (dict(sigma=1.0), 'sigma: Expected `array`'),
        (dict(sigma=(0.1, math.inf)), 'sigma: 0 < least <= greatest expected'),
        (dict(kernel=6), 'kernel: an odd number'),
        (dict(jitter=(math.nan, 0, 0, 0)), 'jitter: brightness'),
        (dict(jitter=(0, 0, 0, 0.9)), 'hue in [0, 0.5]'),
    ],
)
def test_settings_are_checked(unchecked, change, text):
    with pytest.raises(ValueError) as e:
        ColorChanges(**change)
    assert text in str(e.value) and '\n' not in str(e.value)


def test_the_chain_without_changes_is_the_identity():
    x = torch.rand(6, 3, 8, 8, generator=seeded())
    still = ColorChanges(jitter_p=0.0, gray=0.0, blur=0.0, solarize=0.0)
    assert torch.equal(recolor(x, torch.rand(6, 10, generator=seeded()), still), x)

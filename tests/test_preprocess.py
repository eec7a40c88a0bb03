"Size, channels and scale of what a network sees"

import pytest, torch
from jepa_lit.preprocess import Preprocess, at_least_float32, to_unit_range

pytestmark = pytest.mark.usefixtures('unchecked')


def refused(call, kind, part):
    with pytest.raises(kind) as e:
        call()
    assert part in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('given', [1, 3])
@pytest.mark.parametrize('size', [None, 8, 20])
def test_any_image_fits(channels, given, size):
    images = torch.randint(0, 256, (2, given, 12, 10), dtype=torch.uint8)
    seen = Preprocess(size, (0.5,) * channels, (0.25,) * channels)(images)
    assert seen.shape == (2, channels, size or 12, size or 10) and seen.dtype == torch.float32


def test_formula():
    x = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])
    pre = Preprocess(None, mean, std)
    assert torch.equal(pre(x), (x.float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    assert torch.equal(pre(x), pre(x.float() / 255)) and torch.equal(pre(x), pre.normalize(x / 255))
    views = torch.rand(2, 4, 3, 8, 8)
    assert torch.equal(pre.normalize(views)[1], pre.normalize(views[1]))


def test_gray_keeps_white():
    pre = Preprocess(None, (0.0,), (1.0,))
    assert torch.allclose(pre(torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)), torch.ones(1, 1, 4, 4))


def test_statistics_travel_with_the_weights():
    pre = Preprocess(8, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    other = Preprocess(8, (0.5,) * 3, (0.5,) * 3)
    other.load_state_dict(pre.state_dict())
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(pre(x), other(x)) and repr(pre) == 'Preprocess(size=8, channels=3)'


def test_numbers():
    assert to_unit_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [0, 1]
    assert to_unit_range(torch.ones(2, dtype=torch.float64)).dtype == torch.float32
    kinds = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    got = [at_least_float32(torch.ones(1, dtype=t)).dtype for t in kinds]
    assert got == [torch.float32] * 3 + [torch.float64]


def test_faults():
    refused(lambda: Preprocess(8, (0.5, 0.5), (1.0, 1.0)), ValueError, '1 or 3 means')
    refused(lambda: Preprocess(8, (0.5,), (1.0,) * 3), ValueError, '1 or 3 means')
    refused(lambda: Preprocess(8, (0.5,), (0.0,)), ValueError, 'std=[0.0]')
    pre = Preprocess()
    refused(lambda: pre(torch.zeros(1, 2, 4, 4)), ValueError, '(1, 2, 4, 4)')
    refused(lambda: pre(torch.zeros(3, 4, 4)), ValueError, '(3, 4, 4)')
    refused(lambda: pre(torch.zeros(1, 1, 4, 4, dtype=torch.int32)), TypeError, 'torch.int32')
    for bad in (torch.nan, torch.inf, -1.0, 255.0):
        refused(lambda: pre(torch.full((1, 1, 4, 4), bad)), ValueError, 'floats in [0, 1]')

"Patches and positions: parity with the published table, other shapes, types and devices than the chapter shows"

import json, math
from pathlib import Path
import pytest, torch
import torch.nn.functional as F
from safetensors import safe_open
from jepa_lit.patches import (
    PatchEmbed,
    check_index,
    grid_of,
    pair,
    patchify,
    resize_positions,
    sincos_2d,
    take,
    unpatchify,
)

files = sorted((Path(__file__).parent / 'parity').glob('ijepa_*.safetensors'))


@pytest.mark.parametrize('file', files, ids=lambda f: f.stem)
@pytest.mark.parametrize(
    'name,width', [('encoder.pos_embed', 'dim'), ('predictor.predictor_pos_embed', 'pdim')]
)
def test_positions_equal_the_published_table(file, name, width):
    with safe_open(file, 'pt') as f:
        table, c = f.get_tensor(name), json.loads(f.metadata()['config'])
    assert torch.equal(sincos_2d(c['img'] // c['p'], c[width]), table[0])


def test_there_is_something_to_compare():
    assert len(files) == 2


@pytest.mark.parametrize('grid', [(1, 1), (1, 7), (7, 1), (3, 5), (32, 32)])
@pytest.mark.parametrize('dim', [4, 20, 192])
def test_positions_of_any_rectangle(grid, dim):
    "The first half by the column, the second by the row, each sines then cosines, in the order of the frequencies"
    table = sincos_2d(grid, dim).view(*grid, dim)
    w = [10000 ** (-i / (dim // 4)) for i in range(dim // 4)]
    r, s = grid[0] // 2, grid[1] - 1
    expected = [f(v * a) for a in (s, r) for f in (math.sin, math.cos) for v in w]
    torch.testing.assert_close(table[r, s], torch.tensor(expected), rtol=0, atol=1e-6)
    assert (
        table.dtype == torch.float32
        and torch.unique(table.view(-1, dim), dim=0).shape[0] == grid[0] * grid[1]
    )


@pytest.mark.parametrize(
    'shape,patch',
    [((2, 1, 8, 8), 4), ((1, 3, 4, 12), 2), ((3, 2, 15, 5), 5), ((1, 3, 6, 6), 6), ((2, 3, 4, 4), 1)],
)
def test_patchify_and_back(shape, patch):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    grid = grid_of(shape[2:], patch)
    p = patchify(x, patch)
    assert p.shape == (shape[0], math.prod(grid), shape[1] * patch**2)
    assert torch.equal(unpatchify(p, patch, grid, shape[1]), x)
    assert torch.equal(p, F.unfold(x, patch, stride=patch).transpose(1, 2))
    embed = PatchEmbed(shape[2:], patch, shape[1], 8)
    torch.testing.assert_close(
        embed(x), F.linear(p, embed.proj.weight.flatten(1), embed.proj.bias), rtol=1e-5, atol=1e-5
    )
    assert embed.grid == grid


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int64, torch.bool, torch.bfloat16, torch.float64])
def test_patchify_takes_any_type(dtype):
    x = (torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6) % 2).to(dtype)
    assert patchify(x, 2).dtype == dtype and torch.equal(unpatchify(patchify(x, 2), 2, (2, 3)), x)


@pytest.mark.parametrize(
    'old,new',
    [
        ((14, 14), (28, 28)),
        ((14, 14), (7, 7)),
        ((14, 14), (7, 28)),
        ((6, 10), (10, 6)),
        ((3, 9), (5, 2)),
        ((1, 1), (4, 3)),
        ((16, 16), (13, 13)),
    ],
)
@pytest.mark.parametrize('antialias', [False, True])
def test_resizing_is_that_of_an_image_of_each_coordinate(old, new, antialias):
    table = torch.randn(math.prod(old), 5, generator=torch.Generator().manual_seed(1))
    out = resize_positions(table, old, new, antialias)
    for j in range(5):
        one = F.interpolate(table[:, j].view(1, 1, *old), new, mode='bicubic', antialias=antialias)
        torch.testing.assert_close(out[:, j], one.flatten(), rtol=1e-5, atol=1e-5)
    assert torch.equal(resize_positions(table[None], old, new, antialias)[0], out)


def test_resizing_keeps_type_and_identity():
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        table = torch.randn(1, 12, 8, generator=torch.Generator().manual_seed(2)).to(dtype)
        assert resize_positions(table, (3, 4), (3, 4)) is table
        assert resize_positions(table, (3, 4), 5).dtype == dtype and resize_positions(
            table, (3, 4), 5
        ).shape == (1, 25, 8)


def test_resized_positions_follow_the_place_not_the_count():
    "112x448 pixels have as many patches as 224x224: the table must change all the same"
    table = sincos_2d(14, 32)
    wide = resize_positions(table, 14, (7, 28)).view(7, 28, 32)
    assert not torch.allclose(wide.view(-1, 32), table, atol=0.1)
    torch.testing.assert_close(
        wide[1:, :, :16].std(0).amax(), torch.tensor(0.0), rtol=0, atol=1e-5
    )  # columns are columns
    torch.testing.assert_close(
        wide[..., 16:].std(1).amax(), torch.tensor(0.0), rtol=0, atol=1e-5
    )  # rows are rows


def test_take_is_gather_with_its_gradient():
    g = torch.Generator().manual_seed(3)
    x = torch.randn(4, 9, 5, generator=g, dtype=torch.float64).requires_grad_()
    keep = torch.randint(0, 9, (4, 6), generator=g)  # repeats too: gradients add up
    assert torch.equal(take(x, keep), x.gather(1, keep[..., None].expand(-1, -1, 5)))
    assert torch.autograd.gradcheck(lambda x: take(x, keep), x)
    blocks = torch.randint(0, 9, (3, 4, 2), generator=g)
    assert torch.equal(take(x, blocks), torch.stack([take(x, b) for b in blocks]))
    assert torch.equal(take(x[:1], blocks), x[0][blocks])


def test_indices_of_other_devices_are_judged_by_shape_alone():
    bad = torch.full((2, 3), 99, device='meta')
    assert check_index(bad, 4, 2) is None
    with pytest.raises(ValueError, match='shape'):
        check_index(bad, 4, 3)
    with pytest.raises(TypeError, match='int64'):
        check_index(bad.int(), 4, 2)


def test_indices_of_a_wrong_type(unchecked):
    good = torch.tensor([[0, 1]])
    for a, kw in (
        ([[0, 1]], {}),
        (good.numpy(), {}),
        (good.float(), {}),
        (good > 0, {}),
        (good, dict(mask=[[True, True]])),
    ):
        with pytest.raises(TypeError) as e:
            check_index(a, 4, 1, **kw)
        assert '\n' not in str(e.value) and 'expected' in str(e.value)
    with pytest.raises(TypeError, match='uint8'):
        PatchEmbed(8, 4, 1, 8)(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize(
    'index,mask,says',
    [
        ([[0, 4], [1, 2]], None, 'between 0 and 3, got 4'),
        ([[0, -1], [1, 2]], None, 'got -1'),
        ([[0, 1], [2, 2]], None, 'twice for image 1'),
        ([[0, 1], [2, 2]], [[1, 1], [1, 1]], 'twice for image 1'),
        ([[0, 1], [2, 2]], [[0, 0], [1, 0]], 'none for image 0'),
        ([[0, 9], [2, 2]], [[1, 0], [1, 0]], 'got 9'),
    ],
)
def test_index_errors_name_the_culprit(index, mask, says):
    mask = None if mask is None else torch.tensor(mask, dtype=torch.bool)
    with pytest.raises(ValueError, match=says) as e:
        check_index(torch.tensor(index), 4, 2, mask, 'context')
    assert 'context' in str(e.value) and '\n' not in str(e.value)


def test_good_indices_pass():
    for b, k, n in ((1, 1, 1), (3, 5, 5), (32, 44, 144)):
        keep = torch.rand(b, n, generator=torch.Generator().manual_seed(4)).argsort(1)[:, :k]
        check_index(keep, n, b)
        check_index(keep, n, b, torch.ones(b, k, dtype=torch.bool))
    check_index(
        torch.tensor([[3, 0, 0], [0, 1, 2]]), 4, 2, torch.tensor([[True, False, False], [True, True, True]])
    )


def test_misuse_is_one_line(unchecked):
    x = torch.zeros(1, 3, 8, 8)
    for f, a in (
        (pair, ((1, 2, 3),)),
        (pair, (0,)),
        (pair, (2.0,)),
        (pair, (None,)),
        (grid_of, (8, 3)),
        (grid_of, (8, 0)),
        (patchify, (x, 5)),
        (PatchEmbed, ((8, 9), 4, 3, 8)),
        (sincos_2d, (3, 6)),
        (sincos_2d, (3, 0)),
        (resize_positions, (torch.zeros(9, 4), 4, 2)),
        (resize_positions, (torch.zeros(2, 9, 4), 3, 2)),
        (PatchEmbed(8, 4, 3, 8), (x[:, :1],)),
    ):
        with pytest.raises(ValueError) as e:
            f(*a)
        assert '\n' not in str(e.value) and 'expected' in str(e.value)

"The predictor: parity with the published one, both forms against one sequence with a mask, padding, types, errors"

import copy, json, math
from pathlib import Path
import pytest, torch
import torch.nn.functional as F
from safetensors import safe_open
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from jepa_lit.encoder import ViT
from jepa_lit.predictor import Predictor, PredictorConfig

files = sorted((Path(__file__).parent / 'parity').glob('ijepa_*.safetensors'))
forms = pytest.mark.parametrize('shared', [False, True], ids=['published', 'shared'])


def make(shared=False, grid=(4, 5), dim=12, width=8, depth=2, heads=2, seed=0, **kw):
    "A predictor whose weights are large enough for attention to matter"
    p, gen = (
        Predictor(grid, dim, width, depth, heads, shared_context=shared, **kw),
        torch.Generator().manual_seed(seed),
    )
    with torch.no_grad():
        for w in p.parameters():
            w.normal_(std=0.5, generator=gen)
    return p


def given(p, b=3, k=7, m=4, t=3, seed=1):
    gen, n = torch.Generator().manual_seed(seed), p.grid[0] * p.grid[1]

    def some(*shape, take):
        return torch.rand(*shape, n, generator=gen).argsort(-1)[..., :take]

    return torch.randn(b, k, p.dim, generator=gen), some(b, take=k), some(m, b, take=t)


def naive(p, z, context, targets, mask=None):
    "Each image, and in the published form each block, as one sequence with a matrix that says who sees whom"

    def one(i, blocks):
        k, t, pos = z.shape[1], targets.shape[2], p.predictor_pos_embed[0]
        x = torch.cat(
            [
                p.predictor_embed(z[i]) + pos[context[i]],
                *(p.mask_token[0] + pos[targets[j, i]] for j in blocks),
            ]
        )
        sees = torch.zeros(len(x), len(x), dtype=torch.bool)
        sees[:, :k] = True
        for j in range(len(blocks)):
            s = slice(k + j * t, k + j * t + t)
            sees[s, s] = True
        if not p.shared_context:
            sees[:] = True
        if mask is not None:
            sees[:, :k] &= mask[i]
        for layer in p.predictor_blocks:
            q, key, v = [
                y.unflatten(-1, (p.heads, -1)).transpose(0, 1)
                for y in layer.attn.qkv(layer.norm1(x)).chunk(3, -1)
            ]
            a = (
                (q @ key.transpose(-1, -2) / math.sqrt(q.shape[-1]))
                .masked_fill(~sees, -torch.inf)
                .softmax(-1)
            )
            x = x + layer.attn.proj((a @ v).transpose(0, 1).flatten(1))
            x = x + layer.mlp.fc2(F.gelu(layer.mlp.fc1(layer.norm2(x))))
        return p.predictor_proj(p.predictor_norm(x[k:])).unflatten(0, (len(blocks), t))

    m, b = targets.shape[:2]
    if p.shared_context:
        return torch.stack([one(i, range(m)) for i in range(b)], 1)
    return torch.stack([torch.cat([one(i, [j]) for i in range(b)]) for j in range(m)])


@pytest.mark.parametrize('file', files, ids=lambda f: f.stem)
def test_parity(file):
    "The published predictor on its own encoder's output, and on ours from the images; rows are block-major"
    with safe_open(file, 'pt') as f:
        t, c = {k: f.get_tensor(k) for k in f.keys()}, json.loads(f.metadata()['config'])
    part = lambda name: {k[len(name) :]: v for k, v in t.items() if k.startswith(name)}
    p = Predictor(c['img'] // c['p'], c['dim'], c['pdim'], c['pdepth'], c['heads'])
    p.load_state_dict(part('predictor.'))  # strict: their names, their shapes
    torch.testing.assert_close(
        Predictor(c['img'] // c['p'], c['dim'], c['pdim'], 1, c['heads']).predictor_pos_embed,
        t['predictor.predictor_pos_embed'],
        atol=1e-6,
        rtol=0,
    )
    out = p(t['out.context'], t['context'], t['targets'])
    assert out.shape[:2] == (c['m'], c['b'])
    torch.testing.assert_close(out.flatten(0, 1), t['out.pred'], atol=1e-5, rtol=1e-5)
    encoder = ViT(c['img'], c['p'], c['dim'], c['depth'], c['heads'])
    encoder.load_state_dict(part('encoder.'))
    torch.testing.assert_close(
        p(encoder(t['images'], t['context']), t['context'], t['targets']).flatten(0, 1),
        t['out.pred'],
        atol=1e-5,
        rtol=1e-5,
    )


def test_there_is_something_to_compare():
    assert len(files) == 2


@forms
@pytest.mark.parametrize('masked', [False, True], ids=['whole', 'padded'])
@pytest.mark.parametrize(
    'depth, heads, b, k, m, t, grid',
    [
        (1, 2, 2, 5, 3, 2, 4),
        (2, 1, 1, 1, 1, 1, (1, 3)),
        (3, 4, 3, 7, 4, 3, (4, 5)),
        (2, 2, 2, 12, 1, 9, (7, 3)),
        (3, 2, 4, 3, 6, 1, 2),
    ],
)
def test_agrees_with_one_sequence_and_a_mask(shared, masked, depth, heads, b, k, m, t, grid):
    "Values and all gradients in float64"
    p = make(shared, grid, depth=depth, heads=heads).double()
    z, context, targets = given(p, b, k, m, t)
    z = z.double().requires_grad_()
    mask = None
    if masked:
        mask = torch.arange(k) < torch.randint(1, k + 1, (b, 1), generator=torch.Generator().manual_seed(2))
    fast, slow = p(z, context, targets, mask), naive(p, z, context, targets, mask)
    torch.testing.assert_close(fast, slow, atol=1e-12, rtol=1e-10)
    one, two = [torch.autograd.grad(y.sin().sum(), [z, *p.parameters()]) for y in (fast, slow)]
    for a, c in zip(one, two):
        torch.testing.assert_close(a, c, atol=1e-10, rtol=1e-8)
    if mask is not None:
        assert (one[0][~mask] == 0).all()


def test_one_layer_is_one_function():
    "In the last layer nobody reads the context, so with one layer the two forms are the same; with two they are not"
    for depth, same in ((1, True), (2, False)):
        p, s = make(depth=depth), make(True, depth=depth)
        assert p.state_dict().keys() == s.state_dict().keys()
        assert torch.allclose(p(*given(p)), s(*given(p)), atol=1e-5) == same


@forms
def test_blocks_and_images_are_apart(shared):
    p = make(shared)
    z, context, targets = given(p)
    out = p(z, context, targets)
    order, rows, places = torch.tensor([3, 1, 0, 2]), torch.tensor([2, 0, 1]), torch.tensor([1, 2, 0])
    close = lambda a, b: torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    close(p(z, context, targets[order]), out[order])
    close(p(z[rows], context[rows], targets[:, rows]), out[:, rows])
    close(p(z, context, targets[..., places]), out[:, :, places])
    for j in range(4):
        close(p(z, context, targets[[j]]), out[[j]])
    for i in range(3):
        close(p(z[[i]], context[[i]], targets[:, [i]]), out[:, [i]])
    close(p(z.flip(1), context.flip(1), targets), out)
    assert not torch.allclose(p(z.flip(1), context, targets), out, atol=1e-3)


@forms
def test_sees_the_context_only(shared):
    "Outside the context the image may change; not a bit of the prediction does"
    torch.manual_seed(0)
    encoder, p = ViT((8, 16), 4, 12, 2, 2), make(shared, (2, 4))
    context, targets, images = (
        torch.tensor([[0, 1, 5], [2, 6, 7]]),
        torch.tensor([[[2, 3], [0, 1]], [[6, 7], [4, 5]]]),
        torch.rand(2, 3, 8, 16),
    )
    inside = (
        torch.zeros(2, 8)
        .scatter_(1, context, 1.0)
        .bool()
        .view(2, 1, 2, 4)
        .repeat_interleave(4, 2)
        .repeat_interleave(4, 3)
    )
    f = lambda x: p(encoder(x, context), context, targets)
    assert torch.equal(f(images), f(torch.where(inside, images, torch.rand_like(images))))
    assert not torch.equal(f(images), f(torch.where(inside, torch.rand_like(images), images)))


@forms
def test_padding_is_invisible(shared):
    "Whatever a padded entry holds, repeated indices included, the image gets what it gets alone"
    p = make(shared)
    z, context, targets = given(p)
    mask = torch.tensor([[True] * 4 + [False] * 3, [True] * 7, [False] * 6 + [True]])
    out = p(z, context, targets, mask)
    for i in range(3):
        torch.testing.assert_close(
            out[:, [i]],
            p(z[[i]][:, mask[i]], context[[i]][:, mask[i]], targets[:, [i]]),
            atol=1e-5,
            rtol=1e-5,
        )
    other = p(torch.where(mask[..., None], z, 1e4), context * mask, targets, mask)
    torch.testing.assert_close(other, out, atol=1e-5, rtol=1e-5)


@forms
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_types(shared, dtype):
    p = make(shared)
    z, context, targets = given(p)
    want = p(z, context, targets)
    mask = torch.ones(3, 7, dtype=torch.bool)
    for m in (None, mask):
        out = copy.deepcopy(p).to(dtype)(z.to(dtype), context, targets, m)
        assert out.dtype == dtype and (out.float() - want).norm() < 0.05 * want.norm()
        with torch.autocast('cpu', torch.bfloat16):
            out = p(z, context, targets, m)
        assert out.dtype == torch.bfloat16 and (out.float() - want).norm() < 0.05 * want.norm()
    out.float().sum().backward()
    assert all(w.grad.isfinite().all() for w in p.parameters())


def test_published_sizes_and_names():
    "Counted without allocating; positions are no parameters; names as published"
    with torch.device('meta'):
        count = [
            sum(w.numel() for w in Predictor(14, d, 384, depth, heads).parameters())
            for d, depth, heads in ((768, 6, 12), (1024, 12, 16), (1280, 12, 16), (1408, 16, 16))
        ]
        assert Predictor(14, 768, 384, 6, 12)(
            torch.empty(2, 5, 768),
            torch.empty(2, 5, dtype=torch.int64),
            torch.empty(4, 2, 3, dtype=torch.int64),
        ).shape == (4, 2, 3, 768)
    assert [round(c / 1e6, 1) for c in count] == [11.2, 22.1, 22.3, 29.5]
    p = Predictor(4, 12, 8, 1, 2)
    assert {k.split('.')[0] for k in p.state_dict()} == {
        'mask_token',
        'predictor_pos_embed',
        'predictor_embed',
        'predictor_blocks',
        'predictor_norm',
        'predictor_proj',
    }
    assert 'predictor_pos_embed' not in dict(p.named_parameters()) and p.mask_token.shape == (1, 1, 8)


def test_initial_weights():
    torch.manual_seed(0)
    p, r = Predictor(4, 64, 96, 3, 3, mlp_ratio=3), Predictor(4, 64, 96, 3, 3, rescale=True)
    assert p.predictor_blocks[0].mlp.fc1.weight.shape == (288, 96)
    for w in (p.mask_token, p.predictor_embed.weight, p.predictor_blocks[2].mlp.fc2.weight):
        assert 0.012 < w.std() < 0.028
    assert not p.predictor_proj.bias.any()
    for l, block in enumerate(r.predictor_blocks, 1):
        assert abs(block.attn.proj.weight.std() * (2 * l) ** 0.5 / 0.02 - 1) < 0.1


@forms
def test_errors(unchecked, shared):
    p = make(shared)
    z, c, t = given(p)
    ok = torch.ones(3, 7, dtype=torch.bool)
    for args, kind, words in (
        ((4, 12, 10, 2, 2), ValueError, 'divisible by 4'),
        ((4, 12, 8, 2, 3), ValueError, '8, got 3'),
        ((4, 12, 8, 0, 2), ValueError, 'depth=0'),
        ((0, 12, 8, 1, 2), ValueError, 'grid'),
    ):
        with pytest.raises(kind, match=words) as e:
            Predictor(*args)
        assert '\n' not in str(e.value)
    for args, kind, words in (
        ((z[0], c, t), ValueError, r'\(7 k\)'),
        ((z, c[:1], t), ValueError, 'context'),
        ((z, c[:, 1:], t), ValueError, '7 indices, one a context token, got 6'),
        ((z, c.int(), t), TypeError, 'int32'),
        ((z, c + 14, t), ValueError, '19'),
        ((z, c * 0, t), ValueError, 'once'),
        ((z, c, t[0]), ValueError, r'\(m 3 k\)'),
        ((z, c, t[:, :2]), ValueError, r'\(4, 2, 3\)'),
        ((z, c, t.bool()), TypeError, 'bool'),
        ((z, c, t - 9), ValueError, 'targets'),
        ((z, c, t * 0), ValueError, 'targets'),
        ((z, c, t[:0]), ValueError, 'targets'),
        ((z, c, list(t)), TypeError, 'list'),
        ((z, None, t), TypeError, 'NoneType'),
        ((z, c, t, ok.int()), TypeError, 'bool'),
        ((z, c, t, ok[:, 1:]), ValueError, r'\(3, 6\)'),
        ((z, c, t, ok & False), ValueError, 'none'),
    ):
        with pytest.raises(kind, match=words) as e:
            p(*args)
        assert '\n' not in str(e.value)


def test_shared_context_is_cheaper():
    "Operations of a forward and a backward pass, counted: about (k + m t) / m(k + t) of the published form's"
    k, m, t = 52, 4, 25
    count = {}
    for shared in (False, True):
        p = Predictor(12, 192, 96, 6, 3, shared_context=shared)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            p(*given(p, 4, k, m, t)).square().mean().backward()
        count[shared] = counter.get_total_flops()
    assert 1.5 < count[False] / count[True] < m * (k + t) / (k + m * t)


def test_a_recipe_names_its_predictor():
    p = PredictorConfig(width=16, depth=3, heads=4, shared_context=True).predictor((4, 5), 12)
    assert (p.grid, p.dim, p.width, p.depth, p.heads, p.shared_context) == ((4, 5), 12, 16, 3, 4, True)

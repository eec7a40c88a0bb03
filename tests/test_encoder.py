"The encoders beyond their chapter: parity with published outputs, masks, types, sizes, faults. For timings see jepa_lit_bench"

import json
from pathlib import Path
import pytest, torch
import torch.nn.functional as F
from safetensors import safe_open
from jepa_lit.encoder import SIZES, Attention, Block, ViT, attend, fused, initialize, vit
from jepa_lit.patches import sincos_2d

files = sorted((Path(__file__).parent / 'parity').glob('ijepa_*.safetensors'))


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def small(**kw):
    torch.manual_seed(0)
    return ViT(16, 4, 24, 2, 3, in_chans=1, **kw)


def some(b=3, k=7, n=16, seed=1):
    return torch.randn(b, 1, 16, 16, generator=gen(seed)), torch.rand(b, n, generator=gen(seed)).argsort(1)[
        :, :k
    ]


@pytest.mark.parametrize('file', files, ids=lambda f: f.stem)
@pytest.mark.parametrize('which', ['encoder', 'target_encoder'])
def test_published_outputs(file, which):
    "To 1e-5: all patches, and the context; the weights load without a map, strictly"
    with safe_open(file, 'pt') as f:
        t, c = {k: f.get_tensor(k) for k in f.keys()}, json.loads(f.metadata()['config'])
    m = ViT(c['img'], c['p'], c['dim'], c['depth'], c['heads'])
    m.load_state_dict({k[len(which) + 1 :]: v for k, v in t.items() if k.startswith(which + '.')})
    if which == 'encoder':
        torch.testing.assert_close(m(t['images']), t['out.full'], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(m(t['images'], t['context']), t['out.context'], rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(
                m(t['images'], t['context']), t['out.context'], rtol=1e-5, atol=1e-5
            )  # the other attention
    else:
        whole = F.layer_norm(m(t['images']), (c['dim'],))
        mine = torch.cat([torch.stack([row[i] for row, i in zip(whole, block)]) for block in t['targets']])
        torch.testing.assert_close(mine, t['out.targets'], rtol=1e-5, atol=1e-5)


def test_there_is_something_to_compare():
    assert len(files) == 2


def exact(q, k, v, mask=None):
    "The definition, in float64"
    s = q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        s = s.masked_fill(~mask[:, None, None], -torch.inf)
    return s.softmax(-1) @ v.double()


@pytest.mark.parametrize(
    'dtype,tol',
    [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)],
)
@pytest.mark.parametrize('shape', [(2, 3, 1, 1, 4), (2, 3, 5, 9, 8), (1, 2, 70, 70, 16)])
@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('grad', [False, True])
def test_attention_of_every_type(dtype, tol, shape, masked, grad):
    b, g, r, n, e = shape
    q, k, v = [
        torch.randn(b, g, m, e, generator=gen(m), dtype=torch.float64).to(dtype).requires_grad_(grad)
        for m in (r, n, n)
    ]
    mask = None
    if masked:
        mask = torch.rand(b, n, generator=gen(2)) < 0.5
        mask[:, 0] = True
    out = attend(q, k, v, mask)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), exact(q, k, v, mask), rtol=tol, atol=tol)
    if grad:
        mine, true = [
            torch.autograd.grad(y.double().square().sum(), (q, k, v)) for y in (out, exact(q, k, v, mask))
        ]
        for a, t in zip(mine, true):
            assert (a - t).double().norm() <= 5 * tol * t.double().norm() + 1e-12


def test_which_attention():
    q = torch.zeros(1, 1, 1, 4)
    assert fused(q, 5) and fused(q.requires_grad_(), 64) and not fused(q, 63)
    assert not fused(q.bfloat16(), 500) and not fused(q.half(), 500)
    assert fused(torch.zeros(1, 1, 1, 4, device='meta', dtype=torch.bfloat16), 5)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('grad', [False, True])
def test_an_image_of_padding_alone_stays_finite(dtype, grad):
    "Refused on the CPU by the encoder; where values are not asked for, nothing may become NaN"
    x = torch.randn(2, 5, 8, generator=gen(), dtype=torch.float32).to(dtype).requires_grad_(grad)
    mask = torch.tensor([[False] * 5, [True] * 5])
    out = Attention(8, 2).to(dtype)(x, mask)
    assert out.isfinite().all()
    if grad:
        out.float().sum().backward()
        assert x.grad.isfinite().all()


@pytest.mark.parametrize('half', [False, True])
@pytest.mark.parametrize('grad', [False, True])
def test_padding_changes_nothing_for_real_patches(half, grad):
    m, (x, keep) = small(), some()
    lengths = torch.tensor([7, 3, 1])
    mask = torch.arange(7) < lengths[:, None]
    with torch.set_grad_enabled(grad), torch.autocast('cpu', torch.bfloat16, enabled=half):
        out = m(x, torch.where(mask, keep, keep[:, :1]), mask)
        for i, n in enumerate(lengths):
            torch.testing.assert_close(
                out[i, :n], m(x[i : i + 1], keep[i : i + 1, :n])[0], rtol=0, atol=2e-2 if half else 1e-5
            )
    assert out.isfinite().all()
    full = torch.ones_like(mask)
    torch.testing.assert_close(m(x, keep, full), m(x, keep), rtol=0, atol=1e-5)


def test_gradients_with_padding_equal_those_without():
    m, (x, keep) = small().double(), some()
    x = x.double()
    mask = torch.arange(7) < torch.tensor([7, 3, 1])[:, None]

    def grads(y):
        return torch.autograd.grad(y, list(m.parameters()))

    padded = grads((m(x, torch.where(mask, keep, 0), mask) * mask[..., None]).sin().sum())
    alone = grads(sum(m(x[i : i + 1], keep[i : i + 1, :n]).sin().sum() for i, n in enumerate((7, 3, 1))))
    for a, b in zip(padded, alone):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_image_content_outside_the_kept_patches_is_never_seen():
    m, (x, keep) = small(), some()
    hidden = torch.ones(3, 16).scatter_(1, keep, 0.0).view(3, 1, 4, 4)
    other = x + 1e3 * F.interpolate(hidden, scale_factor=4)
    torch.testing.assert_close(m(other, keep), m(x, keep), rtol=0, atol=1e-5)
    assert not torch.allclose(m(other), m(x), atol=0.1)


@pytest.mark.parametrize('img,patch', [(16, 4), ((8, 20), 4), ((6, 4), 2), (7, 7)])
def test_any_rectangle(img, patch):
    m = ViT(img, patch, 8, 1, 2)
    h, w = (img, img) if isinstance(img, int) else img
    assert m.grid == (h // patch, w // patch) and torch.equal(m.pos_embed[0], sincos_2d(m.grid, 8))
    assert m(torch.randn(2, 3, h, w)).shape == (2, m.grid[0] * m.grid[1], 8)


@pytest.mark.parametrize('last', [1, 4, 7])
def test_last_is_the_end_of_the_whole(last):
    block, x = Block(16, 4, 64), torch.randn(2, 7, 16, generator=gen())
    mask = torch.arange(7) < torch.tensor([[7], [5]])
    torch.testing.assert_close(block(x, mask, last), block(x, mask)[:, -last:], rtol=0, atol=1e-5)


@pytest.mark.parametrize('name', SIZES)
def test_sizes_on_the_meta_device(name):
    millions = dict(tiny=5.49, small=21.59, base=85.65, large=303.10, huge=630.43, giant=1011.09)
    with torch.device('meta'):
        m = vit(name, 224, 14 if name == 'huge' else 16)
    assert round(sum(p.numel() for p in m.parameters()) / 1e6, 2) == millions[name]
    d, depth, heads, ratio = SIZES[name]
    assert (m.width, m.depth, m.heads, m.in_chans, m.patch_size) == (
        d,
        depth,
        heads,
        3,
        14 if name == 'huge' else 16,
    )
    assert m.blocks[0].mlp.fc1.out_features == (6144 if name == 'giant' else 4 * d)
    assert 'pos_embed' in m.state_dict() and 'pos_embed' not in dict(m.named_parameters())


def test_initialization_with_and_without_the_depth_rescale():
    torch.manual_seed(0)
    plain = ViT(32, 4, 128, 6, 4, patch_std=0.1)
    torch.manual_seed(0)
    scaled = ViT(32, 4, 128, 6, 4, patch_std=0.1, rescale=True)
    for l, (a, b) in enumerate(zip(plain.blocks, scaled.blocks), 1):
        for n, w in a.named_parameters():
            u = b.get_parameter(n)
            if n in ('attn.proj.weight', 'mlp.fc2.weight'):
                torch.testing.assert_close(u * (2 * l) ** 0.5, w)
            else:
                assert torch.equal(u, w)
            if 'norm' not in n and 'weight' in n:
                assert abs(w.std() / 0.02 - 1) < 0.05
            if 'bias' in n:
                assert not w.any()
    assert abs(plain.patch_embed.proj.weight.std() / 0.1 - 1) < 0.05 and torch.equal(
        plain.norm.weight, torch.ones(128)
    )
    again = initialize(small(), rescale=True, patch_std=0.5)
    assert abs(again.patch_embed.proj.weight.std() / 0.5 - 1) < 0.2


@pytest.mark.parametrize('half', [False, True])
def test_checkpointing_has_the_same_gradients(half):
    x, keep = some()
    mask = torch.arange(7) < torch.tensor([7, 3, 1])[:, None]
    grads = []
    for again in (False, True):
        m = small(checkpoint=again)
        with torch.autocast('cpu', torch.bfloat16, enabled=half):
            y = m(x, torch.where(mask, keep, 0), mask)
        y[mask].sin().sum().backward()
        grads.append([p.grad for p in m.parameters()])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_bfloat16_follows_float32():
    m, (x, keep) = small(patch_std=0.2), some()
    with torch.autocast('cpu', torch.bfloat16):
        y = m(x, keep)
    y32 = m(x, keep)
    assert (y - y32).norm() < 0.02 * y32.norm()
    y.square().sum().backward()
    mine = [p.grad.clone() for p in m.parameters()]
    m.zero_grad()
    y32.square().sum().backward()
    for (n, p), g in zip(m.named_parameters(), mine):
        assert g.dtype == torch.float32 and (g - p.grad).norm() <= 0.1 * p.grad.norm() + 1e-3, n


def test_every_parameter_learns():
    m, (x, keep) = small(), some()
    m(x, keep).sin().sum().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() and p.grad.any()
        for n, p in m.named_parameters()
        if n != 'blocks.0.attn.qkv.bias'
    )


def test_misuse_is_one_line(unchecked):
    m, (x, keep) = small(), some()
    for f, a in (
        (ViT, (30, 4, 24, 2, 3)),
        (ViT, (16, 4, 24, 2, 5)),
        (ViT, (16, 4, 24, 2, 0)),
        (ViT, (16, 4, 26, 2, 2)),
        (ViT, (16, 4, 24, 0, 3)),
        (vit, ('big', 224, 16)),
        (m, (x[:, :, :12],)),
        (m, (x.expand(-1, 3, -1, -1),)),
        (m, (x, keep + 16)),
        (m, (x, keep - 16)),
        (m, (x, keep * 0)),
        (m, (x, keep.float())),
        (m, (x, keep[0])),
        (m, (x, keep[:2])),
        (m, (x, keep[:, :0])),
        (m, (x, None, keep > 0)),
        (m, (x, keep, keep)),
        (m, (x, keep, (keep > 0)[:, :3])),
        (m, (x, keep, keep < 0)),
    ):
        with pytest.raises((ValueError, TypeError)) as e:
            f(*a)
        assert '\n' not in str(e.value) and ('expected' in str(e.value) or 'unknown size' in str(e.value))

"The arithmetic of chapter 64_cost on other shapes than the chapter's, by hand and against torch's own FSDP2"

import json, math, subprocess, sys
from dataclasses import replace
from unittest import mock
import pytest, torch
from torch import nn
from jepa_lit import encoder
from jepa_lit.backbones import ConvNet
from jepa_lit.encoder import SIZES, ViT
from jepa_lit.ijepa import IJEPA
from jepa_lit.lejepa import LeJEPA, projector
from jepa_lit.masks import Masks
from jepa_lit.sampler import MultiBlock
from jepa_lit.predictor import Predictor
from jepa_lit.cost import (
    MACHINES,
    Estimate,
    Machine,
    communication,
    estimate,
    example,
    flops,
    memory,
    profile,
    sketch,
    step_time,
)
from jepa_lit.views import MultiCrop

A100 = MACHINES['A100 80 GB']


def ijepa(
    device='meta',
    grid=(8, 10),
    patch=6,
    d=60,
    depth=3,
    heads=5,
    hidden=2.5,
    width=32,
    deep=2,
    chans=1,
    checkpoint=False,
    **kw,
):
    "An I-JEPA like none in the chapter: rectangular, one channel, odd ratios"
    with torch.device(device):
        e = ViT(
            (grid[0] * patch, grid[1] * patch), patch, d, depth, heads, hidden, chans, checkpoint=checkpoint
        )
        return IJEPA(e, Predictor(grid, d, width, deep, 2), **kw)


def lejepa(device='meta', **kw):
    with torch.device(device):
        return LeJEPA(
            ConvNet(3, (8, 16)),
            projector(16, 12, 24),
            views=MultiCrop(global_views=2, local_views=3, local_size=16),
            slices=40,
            **kw,
        )


@pytest.fixture(scope='module')
def p():
    return profile(ijepa(), total=6, precision='float32')


def block(n, d, h):
    return 2 * n * (4 * d * d + 2 * d * h) + 4 * n * n * d


# counts -----------------------------------------------------------------------------------------------------------------


def test_flops_of_another_shape_by_hand(p):
    m = ijepa()
    x, masks = example(m, 2, 6)
    (blocks, _, t), k, n, cut = masks.targets.shape, masks.context.shape[1], 80, 2 * 80 * 36 * 60
    assert p.forward['target'] == cut + 3 * block(n, 60, 150) and p.forward['encoder'] == cut + 3 * block(
        k, 60, 150
    )
    last = 2 * (k + t) * 3 * 32 * 32 + 2 * t * 9 * 32 * 32 + 4 * t * (k + t) * 32
    assert p.forward['predictor'] == 2 * k * 60 * 32 + blocks * (
        block(k + t, 32, 128) + last + 2 * t * 32 * 60
    )
    attention = 3 * 4 * k * k * 60 + blocks * (4 * (k + t) ** 2 + 4 * t * (k + t)) * 32
    assert p.backward == 2 * (p.forward['encoder'] + p.forward['predictor']) - cut + attention / 2
    assert flops(p, 7) == {**{a: 7 * f for a, f in p.forward.items()}, 'backward': 7 * p.backward}


@pytest.mark.parametrize('checkpoint,half', [(False, False), (False, True), (True, False)])
def test_bytes_kept_as_by_a_real_step(checkpoint, half):
    "Exact but for the random state of the fused kernel, 24 bytes a block; 2 % with autocast, whose casts of small tensors differ"
    q = profile(ijepa(checkpoint=checkpoint), total=6, precision='bfloat16' if half else 'float32')
    real, (x, shape) = ijepa('cpu', checkpoint=checkpoint), example(ijepa(), 5, 6)
    order = torch.stack([torch.randperm(80, generator=torch.Generator().manual_seed(i)) for i in range(5)])
    k, t = shape.context.shape[1], shape.targets.shape[2]
    masks = Masks(order[:, :k].contiguous(), order[:, k : k + t].repeat(len(shape.targets), 1, 1))
    x = torch.rand(x.shape)
    own = {id(t.untyped_storage()) for t in [x, *masks[:2], *real.parameters(), *real.buffers()]}
    kept = {}

    def pack(t):
        s = t.untyped_storage()
        if id(s) not in own:
            kept[id(s)] = s
        return t

    with (
        mock.patch.object(encoder, 'fused', lambda q, n: True),
        torch.autocast('cpu', torch.bfloat16, enabled=half),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
    ):
        loss, _ = real((x, masks))
    got = sum(s.nbytes() for s in kept.values())
    assert abs(5 * q.kept + q.copies - got) <= (0.02 * got if half else 200)
    with mock.patch.object(encoder, 'fused', lambda q, n: True):
        loss.backward()  # recomputes
    opt = torch.optim.AdamW([w for w in real.parameters() if w.requires_grad])
    opt.step()
    said, size = memory(q, 5), lambda ts: sum(t.numel() * t.itemsize for t in ts)
    assert (
        said['parameters']
        == said['gradients']
        == size(w.grad for w in real.parameters() if w.grad is not None)
    )
    assert said['adam'] == size(v for s in opt.state.values() for v in s.values()) and said['target'] == size(
        w for w in real.parameters() if not w.requires_grad
    )
    assert said['buffers'] == size(real.buffers()) and said['inputs'] == size([x, *masks[:2]])


def test_every_number_is_linear_in_the_images():
    "A batch of another size gives the same costs an image, contexts being equal: always of five patches here"
    masks = MultiBlock((8, 10), target_scale=(0.2, 0.2), target_aspect=(1.0, 1.0), max_context=5)
    few, many = (profile(ijepa(masks=masks), total=n, precision='float32') for n in (3, 6))
    assert few.forward == many.forward and few.backward == many.backward
    assert abs(few.kept - many.kept) < 100 and few.copies == many.copies == 0


def test_lejepa_on_another_backbone():
    m = lejepa()
    q = profile(m, total=32, img_size=48, precision='float32')
    assert (
        set(q.forward) == {'backbone', 'projector', 'sigreg'}
        and q.forward['sigreg'] == 2 * 5 * 12 * 40
        and q.forward['projector'] == 2 * 5 * (16 * 24 + 24 * 24 + 24 * 12)
    )
    assert q.parameters(False) == 0 and memory(q, 4)['target'] == 0
    bytes = communication(q, 4)
    norms = [c.num_features for c in m.modules() if isinstance(c, (nn.BatchNorm1d, nn.BatchNorm2d))]
    floats = 2 * (2 * 16 * 5 * 40 + 1) + 2 * sum(4 * c + 1 for c in norms)
    assert bytes['sums'] == 2 * 0.75 * 4 * floats
    real = lejepa('cpu')
    views = [torch.rand(v.shape) for v in example(m, 4, img_size=48)]
    with torch.utils.flop_counter.FlopCounterMode(display=False) as c:
        loss = real.loss(views)
    assert c.get_total_flops() == 4 * sum(q.forward.values())


def test_options_of_a_method_are_counted():
    def run(**kw):
        return profile(ijepa(**kw), total=6)

    after, before, pixels = run(), run(targets='before'), run(targets='pixels')
    assert before.forward['target'] != after.forward['target'] and 'target' not in pixels.forward
    with torch.device('meta'):
        e = ViT((48, 60), 6, 60, 3, 5, 2.5, 1)
        shared = IJEPA(e, Predictor((8, 10), 60, 32, 2, 2, shared_context=True))
    assert profile(shared, total=6).forward['predictor'] < after.forward['predictor']
    padded = profile(ijepa(masks=MultiBlock((8, 10), cut='pad')), total=6)
    assert padded.forward['encoder'] > after.forward['encoder']


@pytest.mark.parametrize('size', SIZES)
def test_sizes(size):
    for m in (sketch('ijepa', size, 16, 64), sketch('lejepa', size, 16, 64)):
        assert all(w.device.type == 'meta' for w in [*m.parameters(), *m.buffers()])
        assert next(iter(example(m, 2))).device.type == 'meta'


def test_published_counts():
    "Parameters, in millions, of encoders and predictors"
    for size, patch, theirs in (
        ('tiny', 16, 5.49),
        ('small', 16, 21.6),
        ('base', 16, 85.6),
        ('large', 16, 303.1),
        ('huge', 14, 630.8),
    ):
        assert (
            abs(sum(w.numel() for w in sketch('ijepa', size, patch).encoder.parameters()) / 1e6 / theirs - 1)
            < 0.007
        )


def test_torch_is_left_as_it_was():
    from torch.nn import functional as F

    before = F.linear, F.conv2d, F.scaled_dot_product_attention, torch.autocast, torch.is_grad_enabled()
    m = ijepa()
    with torch.no_grad():
        profile(m, total=4)
    with pytest.raises(ValueError):
        profile(m, total=1)
    broken = ijepa()
    broken.predictor.forward = lambda *a: 1 / 0
    with pytest.raises(ZeroDivisionError):
        profile(broken, total=4)
    assert before == (
        F.linear,
        F.conv2d,
        F.scaled_dot_product_attention,
        torch.autocast,
        torch.is_grad_enabled(),
    )
    assert all(w.grad is None for w in m.parameters())


# many processes ---------------------------------------------------------------------------------------------------------

FSDP = '''
import json, sys, torch, torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from jepa_lit.encoder import Block, ViT
from jepa_lit.lejepa import LeJEPA, projector
from jepa_lit.views import MultiCrop
n = int(sys.argv[1]); half = sys.argv[2] == 'bfloat16'
dist.init_process_group('fake', store=FakeStore(), rank=0, world_size=n)
mesh, m = init_device_mesh('cpu', (n,)), LeJEPA(ViT(32, 4, 36, 3, 3, 3), projector(36, 8, 20), views=MultiCrop(local_views=0))
policy = MixedPrecisionPolicy(torch.bfloat16 if half else torch.float32, torch.float32)
for b in [b for b in m.modules() if isinstance(b, Block)] + [m]: fully_shard(b, mesh=mesh, mp_policy=policy)
sent = dict(gather=0, scatter=0)
class Log(TorchDispatchMode):
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        if 'allgather_base' in str(f): sent['gather'] += args[0].numel()*args[0].itemsize
        if 'reduce_scatter_base' in str(f): sent['scatter'] += args[1].numel()*args[1].itemsize
        return f(*args, **(kwargs or {}))
with Log():
    loss, _ = m([torch.rand(2, 4, 3, 32, 32)]); before = dict(sent); loss.backward()
held = [sum(p._local_tensor.numel() for p in m.parameters() if p.requires_grad == kind) for kind in (True, False)]
print(json.dumps(dict(forward=before['gather'], backward=sent['gather'] - before['gather'], scatter=sent['scatter'], held=held)))
dist.destroy_process_group()
'''


@pytest.mark.parametrize('n,precision', [(3, 'float32'), (32, 'float32')])
def test_fsdp_holds_and_sends_what_is_said(n, precision, tmp_path):
    "Torch's own FSDP2 in a pretended group of n processes, of which this is the first"
    (tmp_path / 'fsdp.py').write_text(FSDP)
    done = subprocess.run(
        [sys.executable, str(tmp_path / 'fsdp.py'), str(n), precision], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    got = json.loads(done.stdout.splitlines()[-1])
    with torch.device('meta'):
        m = LeJEPA(ViT(32, 4, 36, 3, 3, 3), projector(36, 8, 20), views=MultiCrop(local_views=0))
    q = profile(m, total=4, precision=precision)
    said, share = communication(q, n, 'fsdp'), (n - 1) / n
    assert got['held'] == [q.parameters(True, n), q.parameters(False, n)]
    assert [share * got[k] for k in ('forward', 'backward', 'scatter')] == pytest.approx(
        [said[k] for k in ('gather, forward', 'gather, backward', 'reduce-scatter')]
    )


def test_messages_by_hand(p):
    trained = p.parameters(True)
    for n in (1, 2, 3, 1000):
        assert communication(p, n)['all-reduce'] == pytest.approx(2 * (n - 1) / n * 4 * trained)
    shares = [p.parameters(True, n) for n in (1, 2, 3, 7, 64)]
    assert shares == sorted(shares, reverse=True) and all(
        n * s >= trained for n, s in zip((1, 2, 3, 7, 64), shares)
    )
    assert (
        communication(profile(ijepa(), total=6), 4, 'fsdp')['gather, forward'] * 2
        == communication(p, 4, 'fsdp')['gather, forward']
    )


def test_sharding_only_takes_memory_away(p):
    for n in (2, 8, 64):
        a, b = memory(p, 4, n), memory(p, 4, n, 'fsdp')
        assert (
            all(b[k] < a[k] for k in ('parameters', 'target', 'gradients', 'adam'))
            and a['activations'] == b['activations']
            and a['inputs'] == b['inputs']
        )


def test_time_by_hand(p):
    "Three buckets' worth of a made-up model: the two-stage pipeline, step by step"
    m = Machine('toy', 1e9, 1e9, 1e6, 5e5, node=2, latency=1e-3)
    big = replace(p, units=((1, False, True, ((3 * 25 * 2**18,),)),))  # 75 MiB of float32: three buckets
    got, n = step_time(big, m, 4, 8, mfu=0.5), 3
    backward, sent = 2 * p.backward / 0.5e9, 2 * 0.75 * 75 * 2**20 / 5e5 + 2 * n * m.hops(4) * 1e-3
    ready = done = 0
    for _ in range(n):
        ready += backward / n
        done = max(done, ready) + sent / n
    assert got['waited'] == pytest.approx(done - backward) and m.hops(4) == 2
    assert got['step'] == pytest.approx(got['compute'] + got['waited'])


def test_bandwidth_and_hops():
    assert (
        A100.bandwidth(8) == 300e9
        and A100.bandwidth(9) == 200e9
        and [A100.hops(n) for n in (1, 2, 9, 1024)] == [0, 1, 8, 14]
    )


def test_estimate(p):
    e = estimate(p, replace(A100, memory=1.0), (1, 2, 3, 4, 99), 6, ('ddp',), seen=600)
    assert (
        isinstance(e, Estimate)
        and [r['GPUs'] for r in e.rows] == [1, 2, 3, 4]
        and [r['images each'] for r in e.rows] == [6, 3, 2, 2]
        and not any(r['fits'] for r in e.rows)
    )
    assert e.rows[0]['hours'] == pytest.approx(100 * step_time(p, A100, 1, 6)['step'] / 3600)
    assert (
        repr(e).startswith('ESTIMATE, not measured')
        and len(repr(e).splitlines()) == 6
        and e.rows[0]['efficiency'] == 1
    )


@pytest.mark.slow
def test_the_published_run():
    "ViT-H/14, 300 epochs, 16 A100s, under 72 hours: at least a fifth of the peak, and no more than it"
    q = profile(sketch('ijepa', 'huge', 14), total=128)
    share = 300 * 1_281_167 * sum(flops(q).values()) / (72 * 3600 * 16 * 312e12)
    assert 0.19 < share < 0.23 and 36e9 < sum(memory(q, 128, 16).values()) < 42e9


# what is refused --------------------------------------------------------------------------------------------------------


def test_refused(p, unchecked):
    for f, args, kw, words in (
        (sketch, ('mae',), {}, "'mae'"),
        (sketch, ('ijepa', 'vast'), {}, "unknown size 'vast'"),
        (sketch, ('ijepa', 'base', 15), {}, '15'),
        (example, (None, 2), {}, 'NoneType'),
        (profile, (ijepa('cpu'),), {}, 'meta device'),
        (profile, (ijepa(),), dict(precision='int8'), 'int8'),
        (profile, (ijepa(), 2.5), {}, '2.5'),
        (memory, (p, True), {}, 'True'),
        (memory, (p, 1, 0), {}, '0'),
        (memory, (p, 1, 1, 'fsdp2'), {}, 'fsdp2'),
        (communication, (p, '4'), {}, "'4'"),
        (step_time, (p, A100, 9, 8), {}, '9 processes'),
        (step_time, (p, A100), dict(mfu=0), 'mfu'),
        (Machine, ('x', 1, 1, 1, float('nan')), {}, 'network'),
        (estimate, (p, 'H1'), {}, "unknown machine 'H1'"),
        (estimate, (p,), dict(processes=()), '[]'),
    ):
        with pytest.raises((ValueError, TypeError)) as e:
            f(*args, **kw)
        assert words in str(e.value) and '\n' not in str(e.value), (f.__name__, str(e.value))

"I-JEPA against the published numbers in tests/parity (outputs of that code, no code), and what would spoil its chapter"

import json
from pathlib import Path
import pytest, torch
from safetensors import safe_open
from jepa_lit.encoder import ViT
from jepa_lit.preprocess import Preprocess
from jepa_lit.ijepa import IJEPA, normalize_features
from jepa_lit.masks import Masks
from jepa_lit.sampler import MultiBlock
from jepa_lit.patches import take
from jepa_lit.predictor import Predictor

files = sorted((Path(__file__).parent / 'parity').glob('ijepa_*.safetensors'))
close = dict(rtol=1e-5, atol=1e-5)


def read(file):
    "The method with the file's weights, its batch, and the arrays to agree with"
    with safe_open(file, 'pt') as f:
        t, c = {k: f.get_tensor(k) for k in f.keys()}, json.loads(f.metadata()['config'])
    encoder = ViT(c['img'], c['p'], c['dim'], c['depth'], c['heads'])
    method = IJEPA(
        encoder, Predictor(encoder.grid, c['dim'], c['pdim'], c['pdepth'], c['heads']), momentum=(0.99, 0.99)
    )
    for part, name in (
        (method.encoder, 'encoder.'),
        (method.predictor, 'predictor.'),
        (method.target.model, 'target_encoder.'),
    ):
        part.load_state_dict({k[len(name) :]: v for k, v in t.items() if k.startswith(name)})
    return method, (t['images'], Masks(t['context'], t['targets'])), t


@pytest.mark.parametrize('file', files, ids=lambda f: f.stem)
def test_one_step(file):
    "Encoder, context, predictor, targets, loss and the norm of the first gradient"
    method, (x, masks), t = read(file)
    torch.testing.assert_close(method.encoder(x), t['out.full'], **close)
    z = method.encoder(x, masks.context)
    torch.testing.assert_close(z, t['out.context'], **close)
    torch.testing.assert_close(method.predictor(z, *masks[:2]).flatten(0, 1), t['out.pred'], **close)
    torch.testing.assert_close(method.target_of(x, masks)[0].flatten(0, 1), t['out.targets'], **close)
    loss, logs = method((x, masks))
    torch.testing.assert_close(loss, t['out.losses'][0], **close)
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in method.parameters() if p.requires_grad]).norm()
    torch.testing.assert_close(norm, t['out.gradnorm'], **close)
    assert set(logs) == {'prediction', 'zero', 'feature_mean', 'position_mean'}


@pytest.mark.parametrize('file', files, ids=lambda f: f.stem)
def test_five_steps(file):
    "SGD, each step followed by the average of weights"
    method, batch, t = read(file)
    opt, losses = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.1), []
    for step in range(5):
        loss, _ = method(batch)
        opt.zero_grad()
        loss.backward()
        opt.step()
        method.after_step(step)
        losses.append(loss.detach())
    torch.testing.assert_close(torch.stack(losses), t['out.losses'], **close)


def test_there_is_something_to_compare():
    assert len(files) == 2


def tiny(**options):
    torch.manual_seed(0)
    encoder = ViT((16, 24), 4, 16, 2, 2, in_chans=1, patch_std=0.2)
    return IJEPA(encoder, Predictor(encoder.grid, 16, 8, 1, 2), **options)


@pytest.mark.parametrize('cut', ['random', 'first', 'pad'])
@pytest.mark.parametrize('targets', ['after', 'before', 'pixels'])
@pytest.mark.parametrize('shared', [False, True])
def test_every_form_trains(cut, targets, shared):
    "Rectangular images, every cut, every kind of target, both predictors: finite, and gradients everywhere"
    method = tiny(masks=MultiBlock((4, 6), cut=cut), targets=targets)
    method.predictor.shared_context = shared
    batch = method.prepare(
        torch.randint(0, 256, (5, 1, 16, 24), dtype=torch.uint8), torch.Generator().manual_seed(1)
    )
    loss, _ = method(batch)
    loss.backward()
    assert loss.isfinite() and all(
        p.grad is not None and p.grad.isfinite().all() for p in method.parameters() if p.requires_grad
    )
    assert all(p.grad is None for p in method.target.parameters())


@pytest.mark.parametrize('regularizer', [None, lambda z: z.square().mean()])
@pytest.mark.parametrize('targets', ['after', 'before', 'pixels'])
def test_every_parameter_has_a_gradient_in_every_step(targets, regularizer):
    "So that data parallelism need not look for unused ones: DDP's find_unused_parameters stays off"
    method = tiny(targets=targets, regularizer=regularizer, weight=0.1, steps=3)
    trained = [p for p in method.parameters() if p.requires_grad]
    opt = torch.optim.SGD(trained, 0.1)
    for step in range(3):
        opt.zero_grad(set_to_none=True)
        images = torch.randint(0, 256, (3, 1, 16, 24), dtype=torch.uint8)
        loss, _ = method(method.prepare(images, torch.Generator().manual_seed(step)))
        loss.backward()
        assert all(p.grad is not None for p in trained)
        opt.step()
        method.after_step(step)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32])
def test_autocast(dtype):
    "Under bfloat16 the loss stays float32 and near the exact one"
    method = tiny()
    batch = method.prepare(
        torch.randint(0, 256, (8, 1, 16, 24), dtype=torch.uint8), torch.Generator().manual_seed(1)
    )
    exact = method(batch)[0]
    with torch.autocast('cpu', torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss, _ = method(batch)
    assert loss.dtype == torch.float32 and abs(loss - exact) < 0.02 * exact


def test_masks_are_shared_by_seed_and_step():
    "Pieces of one draw, as ranks take them, give the whole loss and its gradient"
    method = tiny()
    x, masks = method.prepare(
        torch.randint(0, 256, (6, 1, 16, 24), dtype=torch.uint8), torch.Generator().manual_seed(3)
    )
    whole = method.loss(x, masks)
    parts = sum((b - a) / 6 * method.loss(x[a:b], masks.rows(a, b)) for a, b in ((0, 1), (1, 4), (4, 6)))
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(sum(s * method(p)[0] for p, s in method.microbatches((x, masks), 4)), whole)


def test_saved_and_restored():
    a, b = tiny(), tiny()
    with torch.no_grad():
        for p in a.parameters():
            p.add_(0.1)
    a.after_step(0)
    b.load_state_dict(a.state_dict())
    images = torch.randint(0, 256, (3, 1, 16, 24), dtype=torch.uint8)
    assert torch.equal(a.embed(images), b.embed(images)) and a.embed(images, 2).shape == (3, 64)
    assert not torch.equal(a.embed(images), tiny().embed(images))


def test_preprocess_and_augment():
    "Bytes of another size and channel count are brought to the model's"
    method = tiny(
        preprocess=Preprocess(None, [0.5], [0.25]),
        augment=lambda images, generator: images.float().div(255).flip(-1),
    )
    x, masks = method.prepare(torch.randint(0, 256, (2, 1, 16, 24), dtype=torch.uint8), torch.Generator())
    assert x.shape == (2, 1, 16, 24) and 0 <= x.min() and x.max() <= 1 and masks.context.shape[0] == 2
    x = method.normalize_images(x)
    assert x.shape == (2, 1, 16, 24) and -2 <= x.min() < 0 and x.max() <= 2
    gray, color = torch.rand(3, 3, 9, 7), Preprocess(None, [0.5], [0.25])
    assert method.normalize_images(gray).equal(color(gray)) and color(gray).shape == (3, 1, 9, 7)


def test_bytes_and_floats_cost_the_same():
    "Images are normalized in one place, whether the loss or the embedding is asked for, by the same bits"
    pre = Preprocess(None, [0.4], [0.3])
    plain, whole = tiny(), tiny(preprocess=pre)
    images = torch.randint(0, 256, (4, 1, 16, 24), dtype=torch.uint8)
    _, masks = whole.prepare(images, torch.Generator().manual_seed(2))
    want, z = plain.loss(pre(images), masks), plain.embed(pre(images))
    for given in (images, images.float() / 255):
        assert torch.equal(whole.loss(given, masks), want) and torch.equal(whole.embed(given), z)
    assert torch.equal(plain.loss(images, masks), plain.loss(images.float() / 255, masks))
    double = tiny().double()
    assert double.loss(images, masks).dtype == torch.float64


def test_targets_are_constants():
    h = torch.randn(2, 24, 16)
    assert torch.allclose(
        take(normalize_features(h), torch.tensor([[[3], [7]]])).mean(), torch.tensor(0.0), atol=1e-6
    )

"The health of a representation in other types, sizes and scales than the chapter shows, and I-JEPA's collapse with another seed"

import pytest, torch
from torch import nn
from jepa_lit.collapse import effective_rank, health, lidar, mean_cosine, spread, verdict
from jepa_lit.data import generator
from jepa_lit.datasets import load, channel_statistics
from jepa_lit.encoder import ViT
from jepa_lit.preprocess import Preprocess
from jepa_lit.ijepa import IJEPA, baselines, normalize_features
from jepa_lit.sampler import MultiBlock
from jepa_lit.patches import take
from jepa_lit.predictor import Predictor


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


# numbers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types(dtype):
    z = torch.randn(200, 12, generator=gen()).to(dtype)
    for f in (effective_rank, spread, mean_cosine):
        assert f(z).dtype == torch.float32 and torch.isclose(f(z), f(z.float()), rtol=1e-5)
    assert lidar(z.unflatten(0, (50, 4))).dtype == torch.float32


def test_no_gradient_is_kept():
    z = torch.randn(20, 4, requires_grad=True)
    assert (
        not any(f(z).requires_grad for f in (effective_rank, spread, mean_cosine))
        and not lidar(z.unflatten(0, (5, 4))).requires_grad
    )


@pytest.mark.parametrize('k,d', [(1, 1), (1, 8), (3, 8), (8, 8), (40, 64)])
def test_effective_rank_of_equal_directions(k, d):
    basis = torch.linalg.qr(torch.randn(d, d, generator=gen(), dtype=torch.float64))[0][:k]
    z = torch.cat([basis, -basis])
    assert effective_rank(z).item() == pytest.approx(k, rel=1e-6)
    assert effective_rank(z + 3, center=True).item() == pytest.approx(k, rel=1e-6)


@pytest.mark.parametrize('scale', [1e-12, 1e-6, 1.0, 1e6])
def test_scale(scale):
    z = torch.randn(60, 8, generator=gen(), dtype=torch.float64)
    assert effective_rank(scale * z).item() == pytest.approx(effective_rank(z).item(), rel=1e-6)
    assert spread(scale * z).item() == pytest.approx(scale * spread(z).item(), rel=1e-6)
    assert mean_cosine(z * scale).item() == pytest.approx(mean_cosine(z).item(), rel=1e-4)


def test_constant_embeddings():
    for z in (torch.zeros(5, 3), torch.full((5, 3), 1e6), torch.full((5, 3), 0.1)):
        assert effective_rank(z) == 1 and spread(z) < 1e-9
    assert lidar(torch.zeros(4, 3, 5)) == 1 and lidar(torch.full((4, 3, 5), 0.1)) == 1


# LiDAR --------------------------------------------------------------------------------------------------------------


def by_hand(z, eps):
    "The formulas, with matrix square roots"
    z = z.double()
    n, v, d = z.shape
    mean = z.mean(1)
    between = torch.cov(mean.T, correction=0).reshape(d, d)
    within = torch.stack([torch.cov(x.T, correction=0).reshape(d, d) for x in z]).mean(0) + eps * torch.eye(d)
    values, vectors = torch.linalg.eigh(within)
    root = vectors @ torch.diag(values**-0.5) @ vectors.T
    p = torch.linalg.eigvalsh(root @ between @ root).clamp(min=0)
    p = p / p.sum()
    return torch.exp(torch.special.entr(p).sum()).item()


@pytest.mark.parametrize('n,v,d', [(2, 2, 1), (5, 2, 3), (3, 7, 10), (200, 4, 32)])
@pytest.mark.parametrize('eps', [1e-4, 0.3])
def test_lidar_by_hand(n, v, d, eps):
    z = torch.randn(n, 1, d, generator=gen()) + 0.5 * torch.randn(n, v, d, generator=gen(1))
    assert lidar(z, eps).item() == pytest.approx(by_hand(z, eps), rel=1e-4)
    assert 0.999 <= lidar(z, eps) <= min(n - 1, d) + 1e-4


def test_lidar_needs_no_order_of_images_or_views():
    z = torch.randn(30, 5, 8, generator=gen())
    assert lidar(
        z[torch.randperm(30, generator=gen())][:, torch.randperm(5, generator=gen())]
    ).item() == pytest.approx(lidar(z).item(), rel=1e-5)


def test_lidar_counts_a_nuisance_less_the_stronger_it_is():
    g = gen()
    signal, noise = (
        torch.randn(400, 1, 12, generator=g) * (torch.arange(12) < 3),
        torch.randn(400, 4, 12, generator=g),
    )
    found = [
        lidar(signal + 0.05 * noise + s * noise * (torch.arange(12) >= 3)).item() for s in (0.0, 0.3, 3.0)
    ]
    assert all(2.8 < f < 6 for f in found)
    assert effective_rank((signal + 3 * noise * (torch.arange(12) >= 3)).flatten(0, 1)) > 9


def test_lidar_of_pure_noise_is_full():
    "Known and told in the chapter: what is left of a mean over views looks like images"
    assert lidar(torch.randn(500, 4, 10, generator=gen())) > 9


# words --------------------------------------------------------------------------------------------------------------

good = torch.randn(400, 64, generator=gen())


def test_verdict_without_a_line_is_as_before():
    assert (
        verdict(good)
        == verdict(health(good))
        == verdict(good, position_mean=None, zero=None)
        == verdict(good, position_mean=0.3)
    )
    assert verdict(good).startswith('healthy: effective rank')


@pytest.mark.parametrize('line', [0.0045, torch.tensor(0.0045), 0, 0.0])
def test_verdict_speaks_of_positions(line):
    said = verdict(good, position_mean=line)
    assert (
        said.startswith("the targets hardly depend on the image: the mean of each position costs")
        and '0.425 for predicting zero' in said
        and '\n' not in said
    )


def test_verdict_of_two_faults_begins_with_the_collapse():
    flat = good[:, :1] @ torch.randn(1, 64, generator=gen())
    assert verdict(flat, position_mean=0.001).startswith(
        'the representation is collapsing: effective rank 1.0 of 64'
    )
    assert verdict(flat, position_mean=0.001).endswith('(0.425 for predicting zero)') and verdict(
        flat, position_mean=0.001, zero=1.0
    ).endswith('(1 for predicting zero)')


@pytest.mark.parametrize(
    'line,zero,speaks',
    [
        (0.02, None, True),
        (0.022, None, False),
        (0.04, 1.0, True),
        (0.06, 1.0, False),
        (0.001, 0.01, False),
        (0.0, 0.0, True),
    ],
)
def test_verdict_compares_with_zero(line, zero, speaks):
    assert verdict(good, position_mean=line, zero=zero).startswith('the targets') == speaks


@pytest.mark.parametrize(
    'f,error',
    [
        (lambda: lidar([[1.0]]), TypeError),
        (lambda: lidar(torch.randn(4, 3)), ValueError),
        (lambda: lidar(torch.ones(4, 2, 3, dtype=torch.int64)), TypeError),
        (lambda: lidar(torch.randn(1, 4, 3)), ValueError),
        (lambda: lidar(torch.randn(4, 1, 3)), ValueError),
        (lambda: lidar(torch.randn(4, 2, 3), -1.0), ValueError),
        (lambda: lidar(torch.randn(3, 2, 9), 0.0), ValueError),
        (lambda: lidar(torch.full((4, 2, 3), torch.nan)), ValueError),
        (lambda: lidar(torch.randn(4, 2, 3), float('nan')), ValueError),
        (lambda: verdict(good, position_mean=-1.0), ValueError),
        (lambda: verdict(good, position_mean=float('nan')), ValueError),
        (lambda: verdict(good, position_mean=0.1, zero=-1.0), ValueError),
    ],
)
def test_errors_in_one_line(f, error, unchecked):
    with pytest.raises(error) as e:
        f()
    assert '\n' not in str(e.value) and len(str(e.value)) > 20


# I-JEPA -------------------------------------------------------------------------------------------------------------


class NoStop(IJEPA):
    "The encoder in training as its own target"

    def target_of(self, x, masks):
        h = normalize_features(self.encoder(x))
        return take(h, masks.targets), baselines(h.detach(), masks.targets)


def run(seed, kind=IJEPA, patch_std=1.0, momentum=0.998, steps=80):
    "Train a small I-JEPA on 8x8 digits; the lines before and after, and the health after"
    data = load('digits').train
    x = Preprocess(8, *channel_statistics(data))(data.pixels[:1000])
    torch.manual_seed(seed)
    encoder = ViT(8, 2, 32, depth=1, heads=2, in_chans=1, patch_std=patch_std)
    method = kind(
        encoder,
        Predictor(encoder.grid, 32, 32, depth=2, heads=2),
        MultiBlock(encoder.grid, n_targets=1),
        momentum=(momentum, momentum),
    )
    opt, logs = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], 3e-3, fused=True), []
    for step in range(steps):
        g = generator(seed, step)
        loss, log = method((x[torch.randint(1000, (64,), generator=g)], method.masks(64, g)))
        opt.zero_grad()
        loss.backward()
        opt.step()
        method.after_step(step)
        logs.append({k: v.item() for k, v in log.items()})
    with torch.no_grad():
        return logs, health(method.embed(x[:400]))


def test_stop_gradient_decides():
    logs, state = run(1, NoStop, momentum=0.0)
    assert (
        logs[-1]['prediction'] < 0.05
        and logs[-1]['feature_mean'] < 0.1 * logs[0]['feature_mean']
        and state['mean_cosine'] > 0.99
    )
    said = verdict(state, position_mean=logs[-1]['position_mean'])
    assert (
        state['effective_rank'] > 2
        and said.startswith('the representation has collapsed to a point')
        and 'the targets hardly depend on the image' in said
    )


def test_content_decides_without_ema():
    weak, strong = [run(1, patch_std=s, momentum=0.0)[0] for s in (0.1, 1.0)]
    assert (
        weak[-1]['feature_mean'] < 0.25 * weak[0]['feature_mean']
        and strong[-1]['feature_mean'] > 0.8 * strong[0]['feature_mean']
    )


def test_untrained_line_grows_with_the_projection():
    data = load('digits').train
    x = Preprocess(32, *channel_statistics(data))(data.pixels[:64])

    def line(std):
        torch.manual_seed(3)
        net = ViT(32, 4, 64, 2, 2, in_chans=1, patch_std=std)
        with torch.no_grad():
            return baselines(normalize_features(net(x)), torch.arange(64).expand(1, 64, 64))[
                'position_mean'
            ].item()

    lines = [line(s) for s in (0.02, 0.15, 1.0)]
    assert 0.003 < lines[0] < 0.007 and lines[0] < 0.1 * lines[1] < 0.1 * lines[2]

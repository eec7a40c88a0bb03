"""Fresh directions against a fixed set: `python results/fresh-directions.py`, from the root; four minutes on one core.

200 points in 512 dimensions. In two of them the law is an X (two variables of equal size, independent signs): every coordinate is a
standard normal, the covariance is the identity, and only the plane of those two shows that the law is not Gaussian. SIGReg moves the
points by gradient descent with momentum, the rate falling to zero, with 16 fresh directions a step or with a set drawn once.
Three times, with other points and other directions. `33_sigreg` draws fresh-directions/metrics.json and asserts what it claims from it.

Curves: the loss along the directions in use; the statistic along 1,000 directions that no arm trains on (held out); the same averaged
over the directions of the plane with the X (plane), and of a plane in which nothing was hidden (other).
"""

import json, time
from pathlib import Path
import torch
from jepa_lit.data import generator
from jepa_lit.sigreg import sigreg
from jepa_lit.slices import directions
from jepa_lit.runs import machine

POINTS, WIDTH, STEPS, RATE, MOMENTUM, SEEDS = 200, 512, 2500, 3.0, 0.9, (0, 1, 2)
ARMS = {
    '16 fresh': (16, True, 'gaussian'),
    '16 fresh, orthogonal': (16, True, 'orthogonal'),
    '1,024 fixed': (1024, False, 'gaussian'),
    '16 fixed': (16, False, 'gaussian'),
}
LOOKS = [
    0,
    3,
    10,
    20,
    30,
    50,
    70,
    100,
    150,
    200,
    300,
    400,
    500,
    600,
    700,
    850,
    1000,
    1200,
    1400,
    1600,
    1800,
    2000,
    2250,
    2500,
]


def start(seed):
    "The X in coordinates 0 and 1, noise in the others"
    g = generator(seed, 'points')
    z = torch.randn(POINTS, WIDTH, generator=g)
    z[:, 1] = z[:, 0] * torch.sign(torch.randn(POINTS, generator=g))
    return z


def plane(i, j):
    "60 directions of one coordinate plane"
    a, out = torch.arange(60) * torch.pi / 60, torch.zeros(WIDTH, 60)
    out[i], out[j] = a.cos(), a.sin()
    return out


def descend(seed, slices, fresh, sampler):
    "One arm: its curves, where the X was before and after"
    z, g, t = (
        start(seed).requires_grad_(),
        generator(seed, 'directions', slices, fresh, sampler),
        time.process_time(),
    )
    opt = torch.optim.SGD([z], lr=RATE, momentum=MOMENTUM)
    judges = dict(
        held_out=directions(WIDTH, 1000, generator('held out')), plane=plane(0, 1), other=plane(2, 3)
    )
    a, curves, seconds = (
        directions(WIDTH, slices, g, sampler),
        dict(loss=[], held_out=[], plane=[], other=[]),
        0.0,
    )
    for step in range(STEPS + 1):
        loss = sigreg(z, a)
        if step in LOOKS:
            seconds += time.process_time() - t
            with torch.no_grad():
                for k, v in dict(loss=loss, **{k: sigreg(z, j) for k, j in judges.items()}).items():
                    curves[k].append(round(v.item(), 5))
            t = time.process_time()
        if step == STEPS:
            break
        for p in opt.param_groups:
            p['lr'] = RATE * (1 - step / STEPS)
        opt.zero_grad()
        loss.backward()
        opt.step()
        if fresh:
            a = directions(WIDTH, slices, g, sampler)
    return dict(
        curves, cpu_seconds=round(seconds, 1), points=[[round(v, 3) for v in p] for p in z[:, :2].tolist()]
    )


if __name__ == '__main__':
    torch.set_num_threads(1)
    began, runs = time.monotonic(), {}
    for seed in SEEDS:
        for name, arm in ARMS.items():
            runs.setdefault(name, {})[str(seed)] = r = descend(seed, *arm)
            print(
                seed,
                name,
                r['cpu_seconds'],
                's',
                {k: r[k][-1] for k in ('loss', 'held_out', 'plane', 'other')},
                flush=True,
            )
    where = machine(began) | dict(command='python results/fresh-directions.py', seeds=SEEDS)
    setting = dict(
        points=POINTS,
        width=WIDTH,
        steps=STEPS,
        rate=RATE,
        momentum=MOMENTUM,
        arms={k: dict(zip(('slices', 'fresh', 'sampler'), v)) for k, v in ARMS.items()},
        looks=LOOKS,
    )
    before = {str(s): [[round(v, 3) for v in p] for p in start(s)[:, :2].tolist()] for s in SEEDS}
    out = Path(__file__).with_suffix('')
    out.mkdir(exist_ok=True)

    def dump(x):
        return json.dumps(x, separators=(',', ':'))

    lines = [f'{json.dumps(k)}:{dump(v)}' for k, v in dict(**where, setting=setting, before=before).items()]
    lines.append('"runs":{\n' + ',\n'.join(f'{json.dumps(k)}:{dump(v)}' for k, v in runs.items()) + '\n}')
    (out / 'metrics.json').write_text('{\n' + ',\n'.join(lines) + '\n}\n')

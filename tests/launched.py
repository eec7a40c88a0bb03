"""A training that the launch tests start: python launched.py FOLDER [--method ...]

Image i of 56 holds i in its first pixel; seen-<rank>.txt gets the images of each step."""

import argparse, os, signal, sys, time, warnings
from pathlib import Path
import torch
from jepa_lit.callbacks import Checkpoint, MetricsLogger, NonFiniteGuard, Schedule, Signals
from jepa_lit.data import Images, generator
from jepa_lit.parallel import ParallelContext
from jepa_lit.recipes import build, recipe
from jepa_lit.runs import Run
from jepa_lit.training import SingleProcess, fit, stream, to_device

SMALL = dict(
    lejepa=dict(widths='8,16', stem='2', out='8', hidden='16', global_views='2', slices='16', size='16'),
    ijepa=dict(
        patch='4', width='24', depth='1', heads='2', predictor_width='16', predictor_depth='1', size='16'
    ),
)


def images(n=56):
    pixels = torch.randint(256, (n, 1, 16, 16), dtype=torch.uint8, generator=generator(0, 'pixels'))
    pixels[:, 0, 0, 0] = torch.arange(n, dtype=torch.uint8)
    return Images(pixels)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument('folder', type=Path)
    ap.add_argument('--method', default='lejepa')
    ap.add_argument('--steps', type=int, default=12)  # of the recipe
    ap.add_argument('--stop', type=int)  # ask for an end, as by SIGTERM, in this step
    ap.add_argument('--kill', type=int)  # the last rank dies in this step, the first time it comes there
    ap.add_argument('--wait', type=float, default=0)  # seconds a step
    ap.add_argument('--shard', action='store_true')
    a = ap.parse_args()
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    many = int(os.environ.get('WORLD_SIZE', 1)) > 1 or a.shard
    team = ParallelContext(a.shard, 120) if many else SingleProcess()
    rank = team.rank
    r = recipe(
        'digits',
        method=a.method,
        steps=str(a.steps),
        batch='14',
        precision='float32',
        lr='1e-3',
        **SMALL[a.method],
    )
    run = Run(a.folder / 'run')
    if not rank and not Run.exists(run.path):
        run = Run.create(run.path, r)
    team.barrier()
    m = build(r, 16, (0.5,), (0.3,))
    prepare, after, at = m.prepare, m.after_step, [None]

    def watched(pixels, generator, **rows):
        at[0] = pixels[:, 0, 0, 0].tolist()
        return prepare(pixels, generator, **rows)

    def stepped(step):
        after(step)
        with open(a.folder / f'seen-{rank}.txt', 'a') as f:
            f.write(f"{step} {' '.join(map(str, at[0]))}\n")
        time.sleep(a.wait)
        if step == a.stop:
            os.kill(os.getpid(), signal.SIGTERM)
        if step == a.kill and many and rank == team.size - 1 and not (a.folder / 'killed').exists():
            (a.folder / 'killed').touch()
            os.kill(os.getpid(), signal.SIGKILL)

    m.prepare, m.after_step = watched, stepped
    to_device(m, 'contiguous' if a.shard else r.run.memory_format)
    team.wrap(m)
    callbacks = [
        Checkpoint(run.checkpoints, 3),
        Signals(),
        Schedule(r.optim.lr, r.optim.warmup, r.optim.final_lr),
        NonFiniteGuard(),
        MetricsLogger(run.log, run.truncate),
    ]
    batches = stream(images(), r.run.batch)
    state = fit(m, batches, r.optim.optimizer(m), r.run.steps, callbacks, parallel=team)
    if state.status != 'done':
        sys.exit(75)
    weights = team.state(m)
    if not rank:
        torch.save(weights, a.folder / 'final.pt')
    if many:
        team.close()


if __name__ == '__main__':
    main()

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
from jepa_lit.training import SingleProcess, fit, param_groups, stream

SMALL = dict(
    lejepa=dict(widths='8,16', stem=2, out=8, hidden=16, global_views=2, slices=16, size=16),
    ijepa=dict(encoder=dict(patch=4, width=24, depth=1, heads=2), predictor=dict(width=16, depth=1), size=16),
)


def images(n=56):
    pixels = torch.randint(256, (n, 1, 16, 16), dtype=torch.uint8, generator=generator(0, 'pixels'))
    pixels[:, 0, 0, 0] = torch.arange(n, dtype=torch.uint8)
    return Images(pixels)


def observe(method, folder, parallel, wait, stop, kill):
    "Let a method write the images of each step, and ask for an end or die when it is time"
    prepare, after, at = method.prepare, method.after_step, [None]

    def watched(pixels, generator, **rows):
        at[0] = pixels[:, 0, 0, 0].tolist()
        return prepare(pixels, generator, **rows)

    def stepped(step):
        after(step)
        with open(folder / f'seen-{parallel.rank}.txt', 'a') as f:
            f.write(f"{step} {' '.join(map(str, at[0]))}\n")
        time.sleep(wait)
        if step == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        last = parallel.size > 1 and parallel.rank == parallel.size - 1
        if step == kill and last and not (folder / 'killed').exists():
            (folder / 'killed').touch()
            os.kill(os.getpid(), signal.SIGKILL)

    method.prepare, method.after_step = watched, stepped


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument('folder', type=Path)
    ap.add_argument('--method', default='lejepa')
    ap.add_argument('--steps', type=int, default=12)  # of the run
    ap.add_argument('--stop', type=int)  # ask for an end, as by SIGTERM, in this step
    ap.add_argument('--kill', type=int)  # the last rank dies in this step, the first time it comes there
    ap.add_argument('--wait', type=float, default=0)  # seconds a step
    ap.add_argument('--shard', action='store_true')
    a = ap.parse_args()
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    several = int(os.environ.get('WORLD_SIZE', 1)) > 1 or a.shard
    parallel = ParallelContext(a.shard, 120) if several else SingleProcess()
    settings = recipe('digits', method=a.method, steps=a.steps, batch=14, **SMALL[a.method])
    run = Run(a.folder / 'run')
    if not parallel.rank and not Run.exists(run.path):
        run = Run.create(run.path, settings)
    parallel.barrier()

    method = build(settings, 16, (0.5,), (0.3,))
    observe(method, a.folder, parallel, a.wait, a.stop, a.kill)
    parallel.wrap(method)
    optimizer = torch.optim.AdamW(param_groups(method, 0.05), 1e-3)
    callbacks = [
        Checkpoint(run.checkpoints, every=3),
        Schedule(1e-3, weight_decay=0.05),
        NonFiniteGuard(),
        MetricsLogger(run.log, run.truncate),
        Signals(),
    ]
    state = fit(method, stream(images(), 14), optimizer, a.steps, callbacks, parallel=parallel)
    if state.status != 'done':
        sys.exit(75)

    final = parallel.state(method)
    if not parallel.rank:
        torch.save(final, a.folder / 'final.pt')
    if several:
        parallel.close()


if __name__ == '__main__':
    main()

"""A training that the launch tests start: python launched.py FOLDER [--method ...]

Image i of 56 holds i in its first pixel; seen-<rank>.txt gets the images of each step."""

import argparse, os, signal, sys, time, warnings
from pathlib import Path
import torch
from jepa_lit.data import Images, generator
from jepa_lit.parallel import ParallelContext
from jepa_lit.recipes import build, recipe
from jepa_lit.runs import Run
from jepa_lit.oldloop import fit

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
    team = ParallelContext(a.shard, 120) if int(os.environ.get('WORLD_SIZE', 1)) > 1 or a.shard else None
    rank = team.rank if team else 0
    r = recipe(
        'digits',
        method=a.method,
        steps=str(a.steps),
        batch='14',
        watch_every='0',
        checkpoint_every='3',
        precision='float32',
        lr='1e-3',
        **SMALL[a.method],
    )
    run = Run(a.folder / 'run')
    if not rank and not Run.exists(run.path):
        run = Run.create(run.path, r)
    if team:
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
        if step == a.kill and team and rank == team.size - 1 and not (a.folder / 'killed').exists():
            (a.folder / 'killed').touch()
            os.kill(os.getpid(), signal.SIGKILL)

    m.prepare, m.after_step = watched, stepped
    result = fit(m, images(), r, run, progress=False, team=team)
    if result['status'] != 'done':
        sys.exit(75)
    state = team.state(m) if team else m.state_dict()
    if not rank:
        torch.save(state, a.folder / 'final.pt')
    if team:
        team.close()


if __name__ == '__main__':
    main()

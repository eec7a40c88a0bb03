"""How the recipe of the digits was chosen: `python results/digits-trials.py NAME ...`, from the root; two minutes each on one core.

Each trial trains on the training part of split 1 and scores the linear probe by cross-validation on that same part. The test part
is not touched. Columns: all labels (5 folds, twice), 1 and 10 labels a class (10 draws, the rest of the training part to judge).
The results that decided are in digits-trials.jsonl.
"""

import json, sys, time
import numpy as np, torch
from sklearn.model_selection import StratifiedKFold
from jepa_lit.experiment import load_splits, resolve
from jepa_lit.probes import draw, regress, standardize
from jepa_lit.recipes import recipe
from jepa_lit.runs import Options
from jepa_lit.training import fit
from jepa_lit.views import VIEWS

START = dict(steps=300, lr=2e-3, lamb=0.02, out=16)
VIEW = dict(rotate=20.0, shear=0.2, shift=0.15, warp=0.06)
WEAK, MIDDLE = (
    dict(rotate=15.0, shear=0.1, shift=0.1, warp=0.04),
    dict(rotate=17.0, shear=0.15, shift=0.12, warp=0.05),
)
TRIALS = dict(
    base={},
    lam005=dict(lamb=0.005),
    strong=dict(view=dict(rotate=25.0, shear=0.25, shift=0.2, warp=0.08)),
    weak=dict(view=WEAK),
    lr4=dict(lr=4e-3),
    small24=dict(view=dict(global_size=24), steps=500),
    b128v4=dict(batch=128, global_views=4),
    lam01o32=dict(lamb=0.01, out=32),
    proj3=dict(layers=3, hidden=1024, out=64),
    zoom=dict(view=dict(global_scale=(1.25**-2, 0.7**-2))),
    X1=dict(view=WEAK, lamb=0.01, out=32, lr=3e-3),
    X3=dict(view=WEAK, lamb=0.01, out=32, lr=3e-3, layers=3, hidden=1024),
    X4=dict(view=WEAK, lr=3e-3, steps=330),
    X2=dict(view=MIDDLE, lamb=0.01, out=32, lr=3e-3, steps=330),
)


def trial(name, view={}, seed=0, split=1, **changes):
    made = recipe('digits', seed=seed, split_seed=split, **{**START, **changes})
    splits = load_splits(made)
    data = splits.train
    VIEWS['digits'].update({**VIEW, **view})
    began = time.monotonic()
    method = fit(**resolve(made, Options(), splits)).method
    with torch.no_grad():
        z = method.eval().embed(data.pixels)
    y, seconds = data.labels.numpy(), time.monotonic() - began
    folds = [f for k in range(2) for f in StratifiedKFold(5, shuffle=True, random_state=k).split(y, y)]
    parts = [(*standardize(z[a], z[b]), y[a], y[b]) for a, b in folds]
    scores = {
        f'all, C = {C}': np.mean([(regress(a, ya, b, C) == yb).mean() for a, b, ya, yb in parts])
        for C in (1.0, 3.0)
    }
    a, _ = standardize(z, z[:2])
    for k in (1, 10):
        picks = [draw(data.labels, k, i) for i in range(10)]
        rests = [np.setdiff1d(np.arange(len(y)), p) for p in picks]
        scores[f'{k} a class'] = np.mean(
            [(regress(a[p], y[p], a[r], 1.0) == y[r]).mean() for p, r in zip(picks, rests)]
        )
    return dict(
        name=name,
        seed=seed,
        split=split,
        **{k: round(100 * v, 2) for k, v in scores.items()},
        seconds=round(seconds),
    )


if __name__ == '__main__':
    torch.set_num_threads(1)
    for name in sys.argv[1:] or TRIALS:
        print(json.dumps(trial(name, **TRIALS[name])), flush=True)

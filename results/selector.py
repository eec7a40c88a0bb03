"""The grid behind the result page 84_selector: `python results/selector.py SEED ...`, from the root; twenty to thirty minutes a seed on one core.

LeJEPA on the digits for every weight of SIGReg in LAMBDAS and every (global, local) number of views in VIEWS, all else by the
recipe, but half as long: 160 steps of 64 images instead of 320. Each run trains on four fifths of the training part and is scored
on the last fifth, as with `jepa_lit_train --validate`. The test part is not touched. A line in selector/runs.jsonl holds the loss
and its two terms (means of the last 20 steps), the probes, the health of the held-out embeddings, and where the run was made. Runs
that the file holds are not repeated.

The probes are those of `jepa_lit_train`, but at C = 1 to save time. Besides there is `linear_folds`: five folds over all the training
part's images, the fifth included. No label trained the encoder, and it judges on five times as many images, so that runs tie less.
"""

import json, sys, time
from pathlib import Path
import numpy as np, torch
from sklearn.model_selection import StratifiedKFold
from jepa_lit.callbacks import MetricsLogger
from jepa_lit.experiment import load_splits, resolve
from jepa_lit.collapse import health
from jepa_lit.probes import few_label, knn, linear, regress, standardize
from jepa_lit.recipes import recipe
from jepa_lit.runs import Options, record
from jepa_lit.training import fit, precision

STEPS = 160
LAMBDAS = (0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9)
VIEWS = ((2, 0), (4, 0), (2, 4), (8, 0))
GRID = [(lamb, views) for views in VIEWS for lamb in LAMBDAS]
GRID.sort(key=lambda g: (g[1] == (8, 0), g[0] in (0.03, 0.6)))  # a grid cut short is still a grid
FILE = Path(__file__).with_suffix('') / 'runs.jsonl'


@torch.no_grad()
def scores(method, splits):
    "Accuracies, as fractions, and the health of the held-out embeddings"
    a, b = [method.eval().embed(s.pixels) for s in (splits.train, splits.test)]
    four = a, splits.train.labels, b, splits.test.labels
    z, y = torch.cat([a, b]), torch.cat(four[1::2]).numpy()
    folds = [
        (regress(*_pair(z, y, i, j), 1.0) == y[j]).mean()
        for i, j in StratifiedKFold(5, shuffle=True, random_state=0).split(y, y)
    ]
    found = dict(
        knn=knn(*four),
        linear=linear(*four, strengths=(1.0,)),
        linear_10=few_label(*four, strengths=(1.0,))[0],
        linear_folds=float(np.mean(folds)),
    )
    return {k: round(v, 4) for k, v in found.items()}, health(b)


def _pair(z, y, i, j):
    a, b = standardize(z[i], z[j])
    return a, y[i], b


def trial(lamb, views, seed):
    made = recipe(
        'digits',
        lamb=lamb,
        global_views=views[0],
        local_views=views[1],
        seed=seed,
        steps=STEPS,
        validate=True,
    )
    splits, began, lines = load_splits(made), time.monotonic(), []
    settings = resolve(made, Options(watch_every=0), splits)
    settings['callbacks'].append(MetricsLogger(lines.append))
    done = fit(**settings)
    method = done.method
    found, state = scores(method, splits)
    last = {k: float(np.mean([l[k] for l in lines[-20:]])) for k in ('loss', 'prediction', 'sigreg')}
    curve = [{k: round(l[k], 5) for k in ('step', 'prediction', 'sigreg')} for l in lines[19::20]]
    return dict(
        lamb=lamb,
        global_views=views[0],
        local_views=views[1],
        steps=made.run.steps,
        batch=made.run.batch,
        **last,
        probes=found,
        health=state,
        images=[len(splits.train), len(splits.test)],
        status=done.status,
        precision=precision(made.run.precision),
        seconds=round(done.seconds, 2),
        **record(made, began),
        curve=curve,
    )


if __name__ == '__main__':
    torch.set_num_threads(1)
    FILE.parent.mkdir(exist_ok=True)
    key = lambda r: (r['seed'], r['lamb'], r['global_views'], r['local_views'])
    done = {key(json.loads(l)) for l in FILE.read_text().splitlines()} if FILE.exists() else set()
    for seed in map(int, sys.argv[1:] or '0'):
        for lamb, views in GRID:
            if (seed, lamb, *views) in done:
                continue
            line = trial(lamb, views, seed)
            with open(FILE, 'a') as f:
                f.write(json.dumps(line) + '\n')
            print(*key(line), line['loss'], line['probes'], line['wall_seconds'], flush=True)

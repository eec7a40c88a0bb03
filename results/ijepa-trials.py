"""How the recipe of I-JEPA on the digits was chosen: `python results/ijepa-trials.py NAME ...`, from the root; seven minutes each on a quiet core.

Each trial trains on four fifths of the training part and is scored on the last fifth, by the same probes as `jepa_lit_train`, with
mean pooling. The test part is not touched. A line in ijepa-trials.jsonl holds the changes, the scores of the untrained and the trained
target encoder, their health, and the loss beside its baselines every 20 steps. Those that begin with `early` and `short` came first.
Some of the trials named here were never run; the file says which were.
"""

import json, sys, time
import torch
from jepa_lit.experiment import load_splits, resolve
from jepa_lit.collapse import health
from jepa_lit.probes import few_label, linear
from jepa_lit.recipes import recipe
from jepa_lit.runs import Options
from jepa_lit.callbacks import MetricsLogger
from jepa_lit.training import fit

STEPS = 4000
TRIALS = dict(
    base={},
    published=dict(patch_std=0.02),
    std15=dict(patch_std=0.15),
    std6=dict(patch_std=0.6),
    batch64=dict(batch=64, steps=2000),
    batch128=dict(batch=128, steps=1000),
    lr1=dict(lr=1e-3),
    lr25=dict(lr=2.5e-4),
    momentum99=dict(momentum=(0.99, 1.0)),
    momentum9995=dict(momentum=(0.9995, 1.0)),
    still=dict(momentum=(1.0, 1.0)),
    shift=dict(views='shift'),
    raw=dict(normalize=False),
    l2=dict(loss='l2'),
    context=dict(max_context=None),
    first=dict(cut='first'),
    shared=dict(shared_context=True),
    wide=dict(predictor=dict(width=96, heads=3)),
    deep=dict(predictor=dict(depth=4)),
    small=dict(target_scale=(0.05, 0.1)),
    large=dict(target_scale=(0.2, 0.3)),
    one=dict(n_targets=1),
    random=dict(masks='random'),
    block=dict(masks='block'),
    pixels=dict(targets='pixels'),
    before=dict(targets='before'),
)

EARLY = dict(batch=64, patch_std=0.15, steps=1200)  # where the search began
TRIALS |= {
    'early': EARLY,
    **{
        f'early_{k}': EARLY | v
        for k, v in dict(
            shift=dict(views='shift'),
            shared=dict(shared_context=True),
            momentum996=dict(momentum=(0.996, 1.0)),
            std25=dict(patch_std=0.25),
        ).items()
    },
    'short': dict(steps=1500),
    'short_published': dict(steps=1500, patch_std=0.02),
}


@torch.no_grad()
def scores(method, splits):
    "Accuracies in percent and the health of the held-out embeddings"
    a, b = [method.eval().embed(s.pixels) for s in (splits.train, splits.test)]
    y, v = splits.train.labels, splits.test.labels
    return {
        'all': round(100 * linear(a, y, b, v), 2),
        '10 a class': round(100 * few_label(a, y, b, v)[0], 2),
        **health(b),
    }


def trial(name, seed=0, steps=STEPS, **changes):
    made = recipe('digits', method='ijepa', seed=seed, steps=steps, validate=True, **changes)
    splits, began, lines = load_splits(made), time.monotonic(), []
    settings = resolve(made, Options(watch_every=0), splits)
    settings['callbacks'].append(MetricsLogger(lines.append))
    method = settings['method']
    before = scores(method, splits)
    state = fit(**settings)
    curve = [
        {
            k: round(l[k], 5)
            for k in ('step', 'loss', 'prediction', 'zero', 'feature_mean', 'position_mean')
            if k in l
        }
        for l in lines[::20]
    ]
    return dict(
        name=name,
        seed=seed,
        steps=steps,
        changes=changes,
        untrained=before,
        trained=scores(method, splits),
        images_per_second=lines[-1]["images_per_second"],
        seconds=round(time.monotonic() - began),
        curve=curve,
    )


if __name__ == '__main__':
    torch.set_num_threads(1)
    for name in sys.argv[1:] or TRIALS:
        print(json.dumps(trial(name, **TRIALS[name])), flush=True)

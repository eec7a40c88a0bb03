"""Can SIGReg take the place of I-JEPA's moving average? `python results/ijepa-sigreg.py [ARM ...]`, from the root; three minutes an arm on a quiet core.

Every arm is the digits' recipe of I-JEPA, cut to 1,500 steps, with one thing changed: the momentum of the target encoder (0 makes it
the encoder itself), SIGReg on the context's pooled features, and whether a gradient reaches the targets. Arms train on four fifths of
the training part and are probed on the last fifth; the test part is not touched. Each arm is added to ijepa-sigreg/metrics.json when
it ends; an arm that is there already is run again only when it is named. Seven of the nine were run, on cores that were shared with
other programs: the wall times are those of a busy machine.
"""

import json, sys, time
from pathlib import Path
import torch
from jepa_lit.callbacks import MetricsLogger, OnlineProbe
from jepa_lit.experiment import load_splits, resolve
from jepa_lit.collapse import health
from jepa_lit.ijepa import IJEPA, baselines, normalize_features
from jepa_lit.patches import take
from jepa_lit.probes import few_label, knn, linear
from jepa_lit.sigreg import SIGReg
from jepa_lit.recipes import recipe
from jepa_lit.runs import Options, record
from jepa_lit.training import fit

STEPS, FILE = 1500, Path(__file__).with_suffix('') / 'metrics.json'
ARMS = {
    'EMA': {},
    'no EMA': dict(still=True),
    'no EMA + SIGReg 0.05': dict(still=True, weight=0.05),
    'no EMA, no stop': dict(still=True, stop=False),
    'no EMA, no stop + SIGReg 0.05': dict(still=True, stop=False, weight=0.05),
    'no EMA + SIGReg 0.2': dict(still=True, weight=0.2),
    'no EMA + SIGReg 0.01': dict(still=True, weight=0.01),
    'EMA + SIGReg 0.05': dict(weight=0.05),
    'no EMA, no stop + SIGReg 0.2': dict(still=True, stop=False, weight=0.2),
}


class Open(IJEPA):
    "I-JEPA whose targets are the encoder's own features, with their gradient"

    def target_of(self, x, masks):
        h = normalize_features(self.encoder(x))
        return take(h, masks.targets), baselines(h.detach(), masks.targets, self.rho)


@torch.no_grad()
def look(method, splits, probe):
    "Health of the held-out embeddings, where the variance of the patches' features lies, and on request the probes, in percent"
    method.eval()
    b, tokens = (
        method.embed(splits.test.pixels),
        method.target(method.preprocess(splits.test.pixels)).double(),
    )
    centered = tokens - tokens.mean(0)  # what is left when each position's mean is known
    total, left = (tokens - tokens.mean((0, 1))).square().mean(), centered.square().mean()
    out = dict(
        health(b),
        position_share=round(float(1 - left / total), 4),
        within_share=round(float((centered - centered.mean(1, keepdim=True)).square().mean() / left), 4),
    )
    if not probe:
        return out
    data = [
        f(s)
        for s in (splits.train, splits.test)
        for f in (lambda s: method.embed(s.pixels), lambda s: s.labels)
    ]
    return out | {
        'knn': round(100 * knn(*data), 2),
        'linear': round(100 * linear(*data), 2),
        'linear_10': round(100 * few_label(*data)[0], 2),
    }


def arm(name, still=False, stop=True, weight=0.0, seed=0):
    changes = dict(momentum=(0.0, 0.0)) if still else {}
    made = recipe('digits', method='ijepa', seed=seed, steps=STEPS, validate=True, **changes)
    splits, began, lines = load_splits(made), time.monotonic(), []
    settings = resolve(made, Options(watch_every=0), splits)
    method = settings['method']
    if not stop:
        method.__class__ = Open
    if weight:
        method.regularizer, method.weight = SIGReg(256, seed=seed), weight
    looks = [dict(step=0, **look(method, splits, True))]

    def probe(method, step):
        looks.append(dict(step=step + 1, **look(method, splits, (step + 1) % 500 == 0)))
        return {}

    settings['callbacks'] += [OnlineProbe(probe, 100), MetricsLogger(lines.append)]
    fit(**settings)
    keys = ('step', 'loss', 'prediction', 'regularizer', 'zero', 'feature_mean', 'position_mean')
    return dict(
        momentum=list(made.loss.momentum),
        stop_gradient=stop,
        weight=weight,
        record=record(made, began),
        looks=looks,
        curve=[{k: round(l[k], 5) for k in keys if k in l} for l in lines[::10]],
    )


if __name__ == '__main__':
    torch.set_num_threads(1)
    FILE.parent.mkdir(exist_ok=True)
    done = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name in sys.argv[1:] or [a for a in ARMS if a not in done]:
        done[name] = arm(name, **ARMS[name])
        FILE.write_text(
            '{\n' + ',\n'.join(f' {json.dumps(k)}: {json.dumps(v)}' for k, v in done.items()) + '\n}\n'
        )  # an arm a line

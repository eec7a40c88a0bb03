"""I-JEPA and LeJEPA on 1, 2, 3 and 4 processes against one, for DDP and FSDP2: the record results/processes/metrics.json.

python results/processes.py
"""

import argparse, json, time
from pathlib import Path
import torch
from jepa_lit.data import generator
from jepa_lit.backbones import ConvNet
from jepa_lit.encoder import ViT
from jepa_lit.preprocess import Preprocess
from jepa_lit.ijepa import IJEPA
from jepa_lit.launch import launch
from jepa_lit.parallel import ParallelContext
from jepa_lit.lejepa import LeJEPA, projector
from jepa_lit.predictor import Predictor
from jepa_lit.runs import machine
from jepa_lit.training import param_groups
from jepa_lit.views import MultiCrop

DOUBLE, SINGLE = torch.float64, torch.float32


def method(kind, dtype=SINGLE, steps=50):
    "A small method, always with the same weights"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pre = Preprocess(8, (0.3,), (0.3,))
        if kind == 'lejepa':  # batch norm in backbone and projector, views of two sizes
            return LeJEPA(
                ConvNet(1, (8, 16), stem=1),
                projector(16, 8, 16, 3),
                0.05,
                MultiCrop(2, 2, 8, 4),
                pre,
                slices=16,
            ).to(dtype)
        enc = ViT(8, 2, 24, 2, 2, in_chans=1)
        return IJEPA(enc, Predictor(enc.grid, 24, 16, 1, 2), preprocess=pre, steps=steps).to(dtype)


def cast(x, dtype):
    if isinstance(x, torch.Tensor):
        return x.to(dtype) if x.is_floating_point() else x
    return type(x)(cast(v, dtype) for v in x) if type(x) in (list, tuple) else x


def train(kind, dtype, steps, batch, parallel=None, share=True):
    "A plain loop: losses (s,) and the method"
    m = method(kind, dtype, steps)
    model, (a, b) = (parallel.wrap(m), parallel.split(batch)) if parallel else (m, (0, batch))
    if parallel and share:
        m.share = parallel.size * (b - a) / batch
    opt, out = torch.optim.AdamW(param_groups(m, 0.05), 1e-3), []
    for i in range(steps):
        pixels = torch.randint(256, (batch, 1, 8, 8), dtype=torch.uint8, generator=generator(0, 'pixels', i))
        x = cast(m.prepare(pixels[a:b], generator(0, 'views', i), rows=(a, batch)), dtype)
        opt.zero_grad()
        loss = model.train()(x)[0]
        loss.backward()
        opt.step()
        m.after_step(i)
        out.append(parallel.mean(dict(loss=loss))['loss'] if parallel else loss.item())
    return torch.tensor(out, dtype=DOUBLE), m


def everything(cases, batch):
    "What a process of `launch` does: each case, and the whole state at its end"
    out = {}
    for kind, dtype, steps, shard in cases:
        parallel = ParallelContext(shard)
        losses, m = train(kind, dtype, steps, batch, parallel)
        out[kind, dtype, steps, shard] = losses, parallel.state(m)
    return out


def compare(cases, batch, nproc):
    "Largest differences to one process, by case"
    result, ref = launch(everything, nproc, cases, batch)[0], {}
    rows = []
    for (kind, dtype, steps, shard), (losses, state) in result.items():
        if (kind, dtype, steps) not in ref:
            ref[kind, dtype, steps] = train(kind, dtype, steps, batch)
        one, m = ref[kind, dtype, steps]
        gap, whole = (losses - one).abs(), m.state_dict()
        assert state.keys() == whole.keys()
        rows.append(
            dict(
                method=kind,
                precision=str(dtype)[6:],
                engine='FSDP2' if shard else 'DDP',
                processes=nproc,
                batch=batch,
                steps=steps,
                first_loss=one[0].item(),
                last_loss=one[-1].item(),
                first_step=gap[0].item(),
                curve=gap.max().item(),
                weights=max(
                    (state[k].double() - v.double()).abs().max().item() for k, v in whole.items() if v.numel()
                ),
            )
        )
    return rows


if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--steps', type=int, default=50)
    ap.add_argument('--out', default=Path(__file__).parent / 'processes')
    a = ap.parse_args()
    torch.set_num_threads(1)
    began, rows = time.monotonic(), []
    for n in (1, 2, 4, 3):
        cases = [
            (k, d, a.steps if d == DOUBLE else 1, s)
            for s in (False, True)
            for k in ('ijepa', 'lejepa')
            for d in (DOUBLE, SINGLE)
        ]
        rows += compare(cases, 16, n)
        for r in rows[-len(cases) :]:
            print({k: f'{v:.2g}' if isinstance(v, float) else v for k, v in r.items()}, flush=True)
    assert all(r['curve'] < (1e-8 if r['precision'] == 'float64' else 1e-4) for r in rows)
    Path(a.out).mkdir(parents=True, exist_ok=True)
    (Path(a.out) / 'metrics.json').write_text(json.dumps(dict(**machine(began), rows=rows), indent=2) + '\n')

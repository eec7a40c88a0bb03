"""Digests of the final weights of short runs: what a rebuild must not change.

    python results/digests.py [OUT.json]

Each run is a command that anyone can type; one thread, float32. The digest is SHA-256 over the names, shapes and bytes
of the tensors in `model.safetensors`. Digests are comparable on one kind of machine and one version of torch.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

TRAIN = 'jepa_lit_train --quiet --threads 1 --set precision=float32'
RUNS = {
    'lejepa': f'{TRAIN} --steps 40',
    'lejepa natural views, vit': f'{TRAIN} backbone=vit_tiny patch=8 views=natural local_views=2 local_size=16 --steps 6 --batch 16',
    'ijepa': f'{TRAIN} --method ijepa --steps 60',
    'ijepa augmented': f'{TRAIN} views=shift final_weight_decay=0.4 clip=1.0 accumulate=2 --method ijepa --steps 30',
    'averaged': f'{TRAIN} average=0.9 --steps 30',
    'two processes': f'jepa_lit_launch --nproc 2 -- {TRAIN} --steps 20',
    'shards': f'{TRAIN} --data shards --root SHARDS --steps 10 --size 32 --batch 16',
    'averaged, resumed': None,
}
SHARDS = """
from jepa_lit.{load} import load
from jepa_lit.{archives} import write_shards
data = load('digits').train.select(range(200))
write_shards(data, 'SHARDS', 60)
"""


def digest(path):
    "SHA-256 over the tensors of a model's file"
    found = hashlib.sha256()
    for name, x in sorted(load_file(path).items()):
        found.update(f'{name} {x.dtype} {tuple(x.shape)}'.encode())
        found.update(
            x.contiguous().view(torch.uint8).numpy().tobytes()
            if x.ndim
            else x.reshape(1).view(torch.uint8).numpy().tobytes()
        )
    return found.hexdigest()


def run(command, folder):
    "The command in a folder; its output only where it fails"
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        capture_output=True,
        text=True,
        env=dict(os.environ, OMP_NUM_THREADS='1', JEPA_LIT_DEVICE='cpu'),
    )
    if done.returncode:
        raise SystemExit(f'{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}')


if __name__ == '__main__':
    out = {}
    with tempfile.TemporaryDirectory() as place:
        try:
            import jepa_lit.datasets

            load, archives = 'datasets', 'archives'
        except ImportError:
            load, archives = 'data', 'shards'
        Path(place, 'shards.py').write_text(SHARDS.format(load=load, archives=archives))
        run(f'{sys.executable} shards.py', place)
        for name, command in RUNS.items():
            if command is None:
                continue
            run(f'{command} --out run --overwrite', place)
            out[name] = digest(Path(place, 'run', 'model.safetensors'))
            print(f'{name:30} {out[name][:16]}', flush=True)
        run(f'{TRAIN} average=0.9 --steps 12 --out again --set checkpoint_every=6', place)
        run('jepa_lit_train --quiet --threads 1 --resume again --steps 30', place)
        out['averaged, resumed'] = digest(Path(place, 'again', 'model.safetensors'))
        print('averaged, resumed', out['averaged, resumed'][:16])
    about = dict(torch=torch.__version__, python=platform.python_version(), machine=platform.machine())
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(dict(digests=out, **about), indent=2) + '\n')

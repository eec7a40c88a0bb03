"""Digests of the final weights of short runs: what a rebuild must not change.

    python results/digests.py [OUT.json]        # the record is results/digests/metrics.json

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
WRITE = "import jepa_lit as j; j.write_shards(j.load('digits').train.select(range(200)), 'images', 60)"
AVERAGED = f'{TRAIN} average=0.9'
RUNS = {
    'lejepa': [f'{TRAIN} --steps 40 --out run'],
    'lejepa natural views, vit': [
        f'{TRAIN} backbone=vit_tiny patch=8 views=natural local_views=2 local_size=16 --steps 6 --batch 16 --out run'
    ],
    'ijepa': [f'{TRAIN} --method ijepa --steps 60 --out run'],
    'ijepa augmented': [
        f'{TRAIN} views=shift final_weight_decay=0.4 clip=1.0 accumulate=2 --method ijepa --steps 30 --out run'
    ],
    'averaged': [f'{AVERAGED} --steps 30 --out run'],
    'averaged, resumed': [
        f'{AVERAGED} checkpoint_every=6 --steps 12 --out run',
        'jepa_lit_train --quiet --threads 1 --resume run --steps 30',
    ],
    'two processes': [f'jepa_lit_launch --nproc 2 -- {TRAIN} --steps 20 --out run'],
    'shards': [
        f'{sys.executable} -c "{WRITE}"',
        f'{TRAIN} --data shards --root images --steps 10 --size 32 --batch 16 --out run',
    ],
}


def digest(path):
    "SHA-256 over the tensors of a model's file"
    found = hashlib.sha256()
    for name, x in sorted(load_file(path).items()):
        found.update(f'{name} {x.dtype} {tuple(x.shape)}'.encode())
        found.update(x.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def run(commands):
    "The digest of the model that commands leave in an empty folder"
    env = dict(os.environ, OMP_NUM_THREADS='1', JEPA_LIT_DEVICE='cpu')
    with tempfile.TemporaryDirectory() as place:
        for command in commands:
            done = subprocess.run(command, shell=True, cwd=place, capture_output=True, text=True, env=env)
            if done.returncode:
                raise SystemExit(f'{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}')
        return digest(Path(place, 'run', 'model.safetensors'))


if __name__ == '__main__':
    found = {}
    for name, commands in RUNS.items():
        found[name] = run(commands)
        print(f'{name:30} {found[name][:16]}', flush=True)
    about = dict(torch=torch.__version__, python=platform.python_version(), machine=platform.machine())
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(dict(digests=found, **about), indent=2) + '\n')

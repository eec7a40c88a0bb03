"""A training under a real SLURM: the time limit's signal, a checkpoint, back into the queue, the right result. Record: results/slurm/metrics.json.

bash tests/slurm_one_node.sh start && python results/slurm.py; bash tests/slurm_one_node.sh stop
"""

import argparse, contextlib, io, json, os, re, subprocess, sys, tempfile, time
from pathlib import Path
import torch
from jepa_lit.launch import jepa_lit_launch
from jepa_lit.runs import machine

TRAINING = Path(__file__).resolve().parent.parent / 'tests' / 'launched.py'


def ask(*words):
    return subprocess.run(words, capture_output=True, text=True).stdout


def submitted(folder, words, limit, grace):
    "The generated script, handed to sbatch; waits for the end of the job"
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = jepa_lit_launch(
            [
                '--slurm',
                '--nproc',
                '2',
                '--time',
                limit,
                '--grace',
                str(grace),
                '--',
                str(TRAINING),
                str(folder),
                *words,
            ]
        )
    assert code == 0
    (folder / 'job.sh').write_text(out.getvalue())
    job = re.search(r'\d+', ask('sbatch', '--output', str(folder / 'job.out'), str(folder / 'job.sh')))[0]
    while True:
        said = ask('scontrol', 'show', 'job', job)
        state = dict(re.findall(r'(\w+)=(\S+)', said))
        if state.get('JobState') not in (
            'PENDING',
            'RUNNING',
            'COMPLETING',
            'CONFIGURING',
            'REQUEUED',
            'SUSPENDED',
        ):
            return out.getvalue(), state
        time.sleep(2)


def compare(folder, steps=14, wait=6.0, limit='00:02:00', grace=50):
    "One job that is stopped by its time limit, and the same training undisturbed"
    for name in ('quiet', 'job'):
        (folder / name).mkdir()
    words = ['--steps', str(steps)]
    with contextlib.redirect_stdout(io.StringIO()):
        assert jepa_lit_launch(['--nproc', '2', '--', str(TRAINING), str(folder / 'quiet'), *words]) == 0
    began = time.monotonic()
    script, state = submitted(folder / 'job', [*words, '--wait', str(wait)], limit, grace)
    a, b = (torch.load(folder / n / 'final.pt', weights_only=True) for n in ('job', 'quiet'))
    seen = [int(l.split()[0]) for l in (folder / 'job' / 'seen-0.txt').read_text().splitlines()]
    return dict(
        script=[l for l in script.splitlines() if l.startswith(('#SBATCH', 'if '))],
        state=state['JobState'],
        exit_code=state['ExitCode'],
        requeued=int(state['Restarts']),
        seconds=round(time.monotonic() - began),
        steps=steps,
        steps_taken=seen,
        weights_equal_to_an_undisturbed_run=a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a),
    )


if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--out', default=Path(__file__).parent / 'slurm')
    a = ap.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as tmp:
        told = compare(Path(tmp))
    print(json.dumps(told, indent=2))
    Path(a.out).mkdir(parents=True, exist_ok=True)
    (Path(a.out) / 'metrics.json').write_text(
        json.dumps(dict(**machine(began), slurm=ask('sinfo', '--version').strip(), **told), indent=2) + '\n'
    )

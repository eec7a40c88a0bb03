"Several processes: equal to one, started from Python and from the command line"

import json, os, pickle, signal, socket, subprocess, sys, time, warnings
from pathlib import Path
import pytest, torch
import torch.distributed as dist
from torch import nn
from conftest import need, root
from jepa_lit.launch import (
    ParallelContext,
    _meeting,
    _options,
    _program,
    _Unpickler,
    _way,
    jepa_lit_launch,
    launch,
    resumable,
    sbatch,
    convert_batchnorm,
    written,
)

sys.path.insert(0, str(root / 'results'))
from processes import DOUBLE, SINGLE, cast, compare, everything, method, train

CASES = [
    (k, d, 3 if d == DOUBLE else 1, s)
    for s in (False, True)
    for k in ('ijepa', 'lejepa')
    for d in (DOUBLE, SINGLE)
    if not (s and d == SINGLE)
]

# ---- one launch of three processes, which does everything


class Extra(nn.Module):
    "A method with a parameter that is never used and one that is used in one step only"

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.idle, self.late, self.share = nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 2), 1.0

    def forward(self, batch):
        x, step = batch
        y = self.net(x)
        if step == 1:
            y = self.late(y)
        loss = self.share * y.square().mean()
        return loss, {}


def extra(team=None):
    m = Extra()
    model = team.wrap(m) if team else m
    opt, x = torch.optim.AdamW(m.parameters(), 0.1), torch.arange(21.0).view(7, 3) / 21
    a, b = team.split(7) if team else (0, 7)
    m.share = team.size * (b - a) / 7 if team else 1.0
    for step in range(3):
        opt.zero_grad()
        model((x[a:b], step))[0].backward()
        opt.step()
    return {k: v.clone() for k, v in m.state_dict().items()}


def norms(kind, **how):
    return nn.Sequential(
        {1: nn.Conv1d(2, 3, 3), 2: nn.Conv2d(2, 3, 3), 0: nn.Linear(5, 3)}[kind],
        [nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d][kind](3, **how),
    ).double()


KINDS = [
    (0, {}),
    (1, dict(affine=False)),
    (2, dict(momentum=None)),
    (2, dict(track_running_stats=False)),
    (0, dict(momentum=0.5, eps=0.1)),
]


def norm(i, team=None):
    "Outputs, gradients, running moments of a batch norm in training, and outputs in evaluation"
    kind, how = KINDS[i]
    torch.manual_seed(i)
    m = norms(kind, **how)
    x = torch.randn(7, *[(5,), (2, 6), (2, 6, 4)][kind], dtype=DOUBLE) * 3 + 1
    w = torch.randn(7, 3, *[(), (4,), (4, 2)][kind], dtype=DOUBLE)
    a, b = team.split(7) if team else (0, 7)
    if team:
        convert_batchnorm(m)
    for _ in range(2):
        m.zero_grad()
        y = m(x[a:b])
        ((team.size if team else 1) * (y * w[a:b]).sum()).backward()
    grads = [p.grad for p in m.parameters()]
    if team:
        for g in grads:
            dist.all_reduce(g)
            g /= team.size
    return dict(
        y=y.detach(),
        grads=grads,
        state=m.state_dict(),
        eval=m.eval()(x[:1]).detach(),
        names=list(m.state_dict()),
        kind=isinstance(m[1], (nn.BatchNorm1d, nn.BatchNorm2d)),
    )


def broken(team):
    "A value that is not finite in one process only: all have to see it"
    m = method('lejepa')
    model = team.wrap(m)
    views = m.prepare(
        torch.full((team.size, 1, 8, 8), 9, dtype=torch.uint8),
        torch.Generator().manual_seed(0),
        rows=(0, team.size),
    )
    views = [v[:, team.rank : team.rank + 1].clone() for v in views]
    if team.rank == 1:
        views[0][0, 0, 0, 0, 0] = float('nan')
    return model.train()(views)[0].item()


def half(path, shard):
    "Two steps, a checkpoint, two more"
    team = ParallelContext(shard)
    m = method('ijepa', DOUBLE)
    model, opt = team.wrap(m), torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], 1e-3)
    start = 0
    if path.exists():
        start = team.load(path, m, opt)['step']
    for step in range(start, start + 2):
        a, b = team.split(7)
        m.share = team.size * (b - a) / 7
        pixels = torch.randint(
            256, (7, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(step)
        )
        x = cast(m.prepare(pixels[a:b], torch.Generator().manual_seed(step), rows=(a, 7)), DOUBLE)
        opt.zero_grad()
        model.train()(x)[0].backward()
        opt.step()
        m.after_step(step)
    if not start:
        team.save(path, m, opt, dict(step=2, note='two'))
    with torch.no_grad():
        z = m.eval().embed(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    return (
        start,
        {k: v.clone() for k, v in team.state(m).items()},
        z,
        [v.numel() for v in m.parameters()],
        sum((v.to_local() if hasattr(v, 'to_local') else v).numel() for v in m.parameters()),
    )


def three(path):
    warnings.simplefilter('ignore')
    team = ParallelContext()
    out = dict(
        cases=everything(CASES, 16),
        extra=extra(team),
        norms=[norm(i, team) for i in range(len(KINDS))],
        broken=broken(team),
        split=[team.split(n) for n in (3, 7, 64)],
        mean=team.mean(dict(a=team.rank, b=torch.tensor(1.0, requires_grad=True))),
        any=(team.any(team.rank == 2), team.any(False)),
        threads=torch.get_num_threads(),
    )
    out['half'] = half(path / 'sharded', True)
    try:
        team.split(2)
    except ValueError as e:
        out['small'] = str(e)
    return out


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    path = tmp_path_factory.mktemp('ranks')
    return launch(three, 3, path), path


@pytest.mark.parametrize('case', CASES, ids=lambda c: f"{c[0]}-{str(c[1])[6:]}-{'fsdp' if c[3] else 'ddp'}")
def test_three_processes_are_one(ranks, case):
    "Three processes on a batch of 16, which they do not divide"
    kind, dtype, steps, shard = case
    one, m = train(kind, dtype, steps, 16)
    losses, state = ranks[0][0]['cases'][case]
    assert (losses - one).abs().max() < (
        1e-12 if dtype == DOUBLE else 1e-6
    )  # the issue asks for 1e-8 and 1e-4
    assert list(state) == list(m.state_dict())
    for k, v in m.state_dict().items():
        torch.testing.assert_close(
            state[k], v, rtol=0, atol=1e-10 if dtype == DOUBLE else 1e-2
        )  # Adam's first step is a sign


def test_unused_parameters(ranks):
    one = extra()
    for r in ranks[0]:
        for k, v in one.items():
            torch.testing.assert_close(r['extra'][k], v, rtol=0, atol=1e-6)


@pytest.mark.parametrize('i', range(len(KINDS)))
def test_batch_norm_over_processes(ranks, i):
    one, parts = norm(i), [r['norms'][i] for r in ranks[0]]

    def same(a, b):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    same(torch.cat([p['y'] for p in parts]), one['y'])
    for p in parts:
        same(p['grads'], one['grads'])
        same(p['state'], one['state'])
        same(p['eval'], one['eval'])
        assert p['names'] == one['names'] and p['kind']


def test_not_finite_is_seen_by_all(ranks):
    assert all(r['broken'] != r['broken'] for r in ranks[0])


def test_team(ranks):
    a, b, c = ranks[0]
    assert [r['split'] for r in (a, b, c)] == [
        [(0, 1), (0, 2), (0, 21)],
        [(1, 2), (2, 4), (21, 42)],
        [(2, 3), (4, 7), (42, 64)],
    ]
    for r in (a, b, c):
        assert r['mean']['a'] == 1 and r['mean']['b'] == 1 and r['any'] == (True, False) and r['threads'] == 1
        assert r['small'] == 'a batch of 2 is too small for 3 processes: at least one image each expected'


def two(path):
    warnings.simplefilter('ignore')
    out = dict(half=half(path / 'sharded', True))
    index = (path / 'sharded' / '.metadata').read_bytes()
    team, m = ParallelContext(True), method('ijepa', DOUBLE)
    team.wrap(m)
    opt = torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], 1e-3)

    def error(change):
        if team.rank == 0:
            change()
        team.barrier()
        try:
            team.load(path / 'sharded', m, opt)
        except (ValueError, FileNotFoundError) as e:
            return str(e)
        finally:
            team.barrier()

    out['errors'] = [
        error(
            lambda: (path / 'sharded' / '.metadata').write_bytes(
                b'cos\nsystem\n(S\'touch ' + str(path / 'bad').encode() + b'\'\ntR.'
            )
        ),
        error(lambda: (path / 'sharded' / '.metadata').write_bytes(index[:200])),
        error(
            lambda: (
                (path / 'sharded' / '.metadata').write_bytes(index),
                (path / 'sharded' / 'extra.pt').write_bytes(pickle.dumps(Path('x'))),
            )
        ),
        error(lambda: (path / 'sharded' / '.metadata').unlink()),
    ]
    return out


def test_sharded_checkpoint_on_another_number_of_processes(ranks):
    parts, path = ranks
    start, _, _, sizes, mine = parts[1]['half']
    assert start == 0 and abs(mine - sum(sizes) / 3) < 0.1 * sum(sizes)  # a third of everything
    out = launch(two, 2, path)
    whole = one_half()
    assert [o['half'][0] for o in out] == [2, 2]
    for k, v in whole[0].items():
        torch.testing.assert_close(out[0]['half'][1][k], v, rtol=0, atol=1e-10)
    torch.testing.assert_close(out[0]['half'][2], whole[1], rtol=0, atol=1e-8)
    for o in out:
        hostile, short, plain, none = o['errors']
        assert (
            'asks for os.system' in hostile
            and 'damaged' in short
            and 'damaged' in plain
            and 'is not a sharded checkpoint' in none
        )
        assert not any('\n' in e for e in o['errors'])
    assert not (path / 'bad').exists()


def one_half():
    m = method('ijepa', DOUBLE)
    opt = torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], 1e-3)
    for step in range(4):
        pixels = torch.randint(
            256, (7, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(step)
        )
        x = cast(m.prepare(pixels, torch.Generator().manual_seed(step), rows=(0, 7)), DOUBLE)
        opt.zero_grad()
        m.train()(x)[0].backward()
        opt.step()
        m.after_step(step)
    with torch.no_grad():
        return m.state_dict(), m.eval().embed(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))


# ---- functions that travel


def outside(x):
    return x + OFFSET


OFFSET = 3


def test_written_functions_run_elsewhere():
    space = dict(__name__='__main__', OFFSET=3, outside=None)
    import linecache

    cell = 'import torch\nfrom pathlib import Path as P\nCOUNT = 4\n@torch.no_grad()\ndef helper(x): return [x*COUNT for _ in range(2)]\nclass Box:\n    def __init__(self, v: P): self.v = helper(v)\ndef main(n, k=COUNT):\n    def inner(): return Box(n).v\n    return inner(), k, P("a").name, torch.ones(1).item()\n'
    linecache.cache['<ipython-input-1>'] = (len(cell), None, cell.splitlines(True), '<ipython-input-1>')
    exec(compile(cell, '<ipython-input-1>', 'exec'), space)
    text, values = written(space['main'])
    fresh = dict(values)
    exec(text, fresh)
    assert (
        values == dict(COUNT=4)
        and fresh['main'](2) == ([8, 8], 4, 'a', 1.0)
        and 'from pathlib import Path as P' in text
    )


def test_functions_that_cannot_travel(unchecked):
    def local():
        return OFFSET

    holds = [1]

    def closure():
        return holds

    space = dict(__name__='__main__', lock=__import__('threading').Lock())
    exec('def typed(): return lock', space)
    for fn, says in (
        (lambda: 1, 'cannot send a lambda'),
        (local, 'made inside another function; define it'),
        (closure, 'holds its holds; pass that as an argument'),
        (3, 'expects a function, got int'),
        (space['typed'], 'source is not to be found'),
    ):
        with pytest.raises((ValueError, TypeError), match=says) as e:
            launch(fn, 2)
        assert '\n' not in str(e.value)
    with pytest.raises(ValueError, match='argument 0, a lock'):
        launch(outside, 2, space['lock'])
    with pytest.raises(ValueError, match='at least one process'):
        launch(outside, 0)


def dies():
    return 1 / 0 if dist.get_rank() else dist.barrier()


@pytest.mark.slow
def test_the_first_cause_is_told():
    with pytest.raises(RuntimeError) as e:
        launch(dies, 2)
    assert str(e.value) == 'process 1 failed: ZeroDivisionError: division by zero'


# ---- the command


def test_resumable():
    assert resumable(['jepa_lit_train', 'digits']) == ['jepa_lit_train', 'digits', '--resume', 'auto']
    assert resumable(['jepa_lit_train', '--resume', 'x']) == [
        'jepa_lit_train',
        '--resume',
        'x',
    ] and resumable(['a.py']) == ['a.py']


def test_slurm_script(capsys):
    assert (
        jepa_lit_launch(
            [
                '--slurm',
                '--nnodes',
                '2',
                '--nproc',
                '8',
                '--time',
                '01:00:00',
                '--sbatch',
                'partition=gpu',
                '--sbatch',
                'gpus-per-node=8',
                '--',
                'jepa_lit_train',
                '--data',
                'digits',
                '--out',
                'runs/a b',
            ]
        )
        == 0
    )
    script = capsys.readouterr().out
    for line in (
        '#!/bin/bash',
        '#SBATCH --nodes=2',
        '#SBATCH --ntasks-per-node=1',
        '#SBATCH --time=01:00:00',
        '#SBATCH --signal=USR1@120',
        '#SBATCH --requeue',
        '#SBATCH --partition=gpu',
        '#SBATCH --gpus-per-node=8',
        'exit $code',
    ):
        assert line in script.splitlines()
    assert (
        "-- jepa_lit_train --data digits --out 'runs/a b' --resume auto\n" in script
        and '--rdzv-id "$SLURM_JOB_ID"' in script
        and 'if [ $code -eq 75 ] || [ $code -eq 138 ]; then scontrol requeue' in script
    )
    assert subprocess.run(['bash', '-n'], input=script, text=True).returncode == 0


@pytest.mark.parametrize(
    'words, says',
    [
        ([], 'a command expected after --'),
        (['--nproc', '0', '--', 'x.py'], '--nproc: a number of at least 1 or auto expected, got 0'),
        (['--', 'no_such_program'], 'no program named no_such_program'),
        (['--nnodes', '2', '--', 'x.py'], 'needs --rdzv-endpoint'),
        (['--slurm', '--sbatch', 'a b', '--', 'x.py'], '--sbatch: KEY=VALUE expected'),
        (
            ['--slurm', '--sbatch', 'signal=B:TERM@60', '--', 'x.py'],
            '--sbatch signal=B:TERM@60: the script sets signal itself',
        ),
        (
            ['--slurm', '--sbatch', 'mem=4G', '--sbatch', 'time=1', '--', 'x.py'],
            '--sbatch time=1: the script sets time itself; give --time',
        ),
        (['--slurm', '--sbatch', 'no-requeue', '--', 'x.py'], 'it always queues again'),
        (['--', './no/such'], 'no program named ./no/such'),
        (['--nnodes', 'x', '--', 'x.py'], '--nnodes'),
    ],
)
def test_command_errors(capsys, words, says):
    assert jepa_lit_launch(words) == 2
    err = capsys.readouterr().err
    assert says in err and err.count('\n') == 1 and err.startswith('jepa_lit_launch: error: ')


WORKER = '''import os, pathlib, signal, sys, time
here, rank, again = pathlib.Path(sys.argv[1]), os.environ['RANK'], os.environ['TORCHELASTIC_RESTART_COUNT']
(here/f'{rank}-{again}').write_text(os.environ['WORLD_SIZE'])
if sys.argv[2] == 'exit': sys.exit(int(sys.argv[3]) if rank == '1' else 0)
if sys.argv[2] == 'die' and again == '0' and rank == '1': os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == 'wait':
    signal.signal(signal.SIGUSR1, lambda *a: ((here/f'signal-{rank}').touch(), sys.exit(75)))
    (here/f'ready-{rank}').touch(); time.sleep(60)
'''


@pytest.fixture
def worker(tmp_path):
    (tmp_path / 'worker.py').write_text(WORKER)
    return tmp_path / 'worker.py'


def started(worker, *words, options=()):
    return jepa_lit_launch(['--nproc', '2', *options, '--', str(worker), str(worker.parent), *words])


def files(worker):
    return {p.name for p in worker.parent.iterdir()} - {'worker.py'}


def test_exit_codes(worker, capfd):
    before, handler = dict(os.environ), signal.getsignal(signal.SIGUSR1)
    assert started(worker, 'exit', '0') == 0 and files(worker) == {'0-0', '1-0'}
    assert (
        started(worker, 'exit', '7') == 7
        and capfd.readouterr().err.strip().splitlines()[-1]
        == 'jepa_lit_launch: error: process 1 failed: exit code 7'
    )
    assert started(worker, 'exit', '75') == 75
    assert dict(os.environ) == before and signal.getsignal(signal.SIGUSR1) == handler


def test_all_start_again_when_one_is_killed(worker, capfd):
    assert started(worker, 'die') == 128 + signal.SIGKILL
    assert started(worker, 'die', options=['--max-restarts', '1']) == 0 and {'0-1', '1-1'} <= files(worker)


def test_signals_are_handed_on(worker, capfd):
    import threading

    def send():
        while not {'ready-0', 'ready-1'} <= files(worker):
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGUSR1)

    t = threading.Thread(target=send, daemon=True)
    t.start()
    assert started(worker, 'wait') == 75 and {'signal-0', 'signal-1'} <= files(worker)


MEETS = '''import os, signal, sys, time
import torch.distributed as dist
from jepa_lit.launch import join
rank, again = int(os.environ['RANK']), int(os.environ['TORCHELASTIC_RESTART_COUNT'])
if again and rank == 0: time.sleep(2)
join(60)
dist.barrier()
if not again and rank: os.kill(os.getpid(), signal.SIGKILL)
dist.barrier(); dist.destroy_process_group()
'''


def port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@pytest.mark.parametrize(
    'how', ['alone', *(pytest.param(how, marks=pytest.mark.slow) for how in ('endpoint', 'node rank'))]
)
def test_one_restart_suffices(tmp_path, capfd, how):
    "Also if a process is late: the others wait for it, and do not take the address of the one that died"
    (tmp_path / 'meets.py').write_text(MEETS)
    options = {
        'endpoint': ['--rdzv-endpoint', f'127.0.0.1:{port()}'],
        'node rank': ['--node-rank', '0', '--rdzv-endpoint', f'127.0.0.1:{port()}'],
    }.get(how, [])
    assert (
        jepa_lit_launch(['--nproc', '2', '--max-restarts', '1', *options, '--', str(tmp_path / 'meets.py')])
        == 0
    )


def test_a_process_that_waits_for_others_can_be_ended():
    "Where it waits, a handler in Python is not heard"
    at = port()
    code = 'import signal; from jepa_lit.launch import join; signal.signal(signal.SIGTERM, lambda *a: None); join(60)'
    p = subprocess.Popen(
        [sys.executable, '-c', code],
        env=dict(
            os.environ,
            PYTHONPATH=str(root),
            RANK='0',
            WORLD_SIZE='2',
            MASTER_ADDR='127.0.0.1',
            MASTER_PORT=str(at),
        ),
    )
    try:
        for _ in range(600):
            with socket.socket() as s:
                if not s.connect_ex(('127.0.0.1', at)):
                    break  # it waits, since its store is open
            time.sleep(0.05)
        p.terminate()
        assert p.wait(10) == -signal.SIGTERM
    finally:
        p.kill()
        p.wait()


def test_signals_are_as_before_once_all_have_met():
    "Handlers come back; what was ignored, as SIGINT is in a background job, stays ignored"
    from jepa_lit.launch import _mortal

    def handler(*_):
        pass

    old = {
        s: signal.signal(s, h)
        for s, h in ((signal.SIGTERM, handler), (signal.SIGINT, handler), (signal.SIGUSR1, signal.SIG_IGN))
    }
    try:
        with _mortal():
            assert [signal.getsignal(s) for s in old] == [signal.SIG_DFL, signal.SIG_DFL, signal.SIG_IGN]
        assert [signal.getsignal(s) for s in old] == [handler, handler, signal.SIG_IGN]
    finally:
        for s, h in old.items():
            signal.signal(s, h)


def test_programs_with_a_path(tmp_path, capfd, monkeypatch):
    "With a separator a name means that file, as in a shell; without one, what is installed beside Python comes first"
    (tmp_path / 'x.sh').write_text('#!/bin/sh\ntouch $1-$RANK\n')
    (tmp_path / 'x.sh').chmod(0o755)
    monkeypatch.chdir(tmp_path)
    assert jepa_lit_launch(['--nproc', '1', '--', './x.sh', 'a']) == 0 and (tmp_path / 'a-0').exists()
    assert _program([str(tmp_path / 'x.sh'), 'b']) == ['--no-python', str(tmp_path / 'x.sh'), 'b']
    assert _program(['/usr/bin/env', 'true']) == ['--no-python', '/usr/bin/env', 'true']
    assert (
        _program([f'{Path(sys.executable).parent}/jepa_lit_train'])[1]
        == _program(['jepa_lit_train'])[1]
        == str(Path(sys.executable).with_name('jepa_lit_train'))
    )
    (tmp_path / 'x.sh').chmod(0o644)
    assert jepa_lit_launch(['--', './x.sh']) == 2 and 'no program named ./x.sh' in capfd.readouterr().err


# ---- trainings

LAUNCHED = root / 'tests' / 'launched.py'


def trained(folder, *words, nproc=1, options=(), code=0, **env):
    folder.mkdir(exist_ok=True)
    program = (
        [sys.executable, '-m', 'jepa_lit.launch', '--nproc', str(nproc), *options, '--', str(LAUNCHED)]
        if nproc > 1
        else [sys.executable, str(LAUNCHED)]
    )
    p = subprocess.run(
        [*program, str(folder), *words],
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(root), **env),
    )
    assert p.returncode == code, p.stderr[-3000:]
    return p


def seen(folder):
    "Images of each step, in the order of the batch, of all ranks; a step that was taken twice counts as its last"
    ranks = [
        {int(l.split()[0]): list(map(int, l.split()[1:])) for l in f.read_text().splitlines()}
        for f in sorted(folder.glob('seen-*.txt'))
    ]
    return {step: sum((r.get(step, []) for r in ranks), []) for step in sorted(set().union(*ranks))}


def final(folder):
    return torch.load(folder / 'final.pt', weights_only=True)


def near(a, b, tol):
    for k in b:
        torch.testing.assert_close(a[k], b[k], rtol=0, atol=tol)


@pytest.mark.slow
@pytest.mark.parametrize('method_', ['lejepa', 'ijepa'])
def test_resume_on_other_numbers_of_processes(tmp_path, method_):
    "2, then 1, then 4 processes: the images of each step, and of each epoch, are those of one process"
    trained(tmp_path / 'one', '--method', method_)
    many = tmp_path / 'many'
    rows = {}
    for nproc, stop in ((2, 2), (1, 5), (4, None)):
        trained(
            many,
            '--method',
            method_,
            *(['--stop', str(stop)] if stop else []),
            nproc=nproc,
            code=75 if stop else 0,
        )
        now = seen(many)
        rows |= {k: v for k, v in now.items() if k not in rows}
        for f in many.glob('seen-*.txt'):
            f.unlink()
    assert rows == seen(tmp_path / 'one') and list(rows) == list(range(12))
    for epoch in range(3):
        assert sorted(sum((rows[s] for s in range(4 * epoch, 4 * epoch + 4)), [])) == list(range(56))
    near(
        final(many), final(tmp_path / 'one'), 0.02
    )  # float32 with Adam, whose first steps are signs; the batches are equal


@pytest.mark.slow
@pytest.mark.parametrize('method_, shard', [('lejepa', False), ('ijepa', True)])
def test_a_killed_worker_changes_nothing(tmp_path, method_, shard):
    "All start again into the same run, and its result is that of a run that nobody disturbed, to the last bit"
    how = ['--method', method_, *(['--shard'] if shard else [])]
    trained(tmp_path / 'quiet', *how, nproc=2)
    p = trained(tmp_path / 'killed', *how, '--kill', '7', nproc=2, options=['--max-restarts', '1'])
    assert (tmp_path / 'killed' / 'killed').exists() and seen(tmp_path / 'killed') == seen(tmp_path / 'quiet')
    a, b = final(tmp_path / 'killed'), final(tmp_path / 'quiet')
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    log = [json.loads(l) for l in (tmp_path / 'killed' / 'run' / 'log.jsonl').read_text().splitlines()]
    assert [l['step'] for l in log] == list(range(12))


@pytest.fixture(scope='module')
def hosts():
    "Two network namespaces with addresses of their own; their names lead nowhere"
    need('ip')
    if os.geteuid() or subprocess.run(['ip', 'netns', 'add', 'jepa-try'], capture_output=True).returncode:
        pytest.skip('needs root and network namespaces')
    subprocess.run(['ip', 'netns', 'del', 'jepa-try'], check=True)

    def ip(words):
        subprocess.run(['ip', *words.split()], check=True)

    def host(i, folder, *words, env={}):
        command = [
            sys.executable,
            '-m',
            'jepa_lit.launch',
            '--nproc',
            '2',
            '--nnodes',
            '2',
            *words,
            '--rdzv-endpoint',
            '10.77.0.1:29511',
            '--',
            str(LAUNCHED),
            str(folder),
        ]
        return subprocess.Popen(
            [
                'ip',
                'netns',
                'exec',
                f'jepa{i}',
                'unshare',
                '--uts',
                'sh',
                '-c',
                f'hostname nowhere{i} && exec "$@"',
                'sh',
                *command,
            ],
            env=dict(
                {k: v for k, v in os.environ.items() if k != 'GLOO_SOCKET_IFNAME'},
                PYTHONPATH=str(root),
                **env,
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    try:
        for i in (1, 2):
            ip(f'netns add jepa{i}')
            ip(f'-n jepa{i} link set lo up')
        ip('link add jv1 netns jepa1 type veth peer name jv2 netns jepa2')
        for i in (1, 2):
            ip(f'-n jepa{i} addr add 10.77.0.{i}/24 dev jv{i}')
            ip(f'-n jepa{i} link set jv{i} up')
        yield host
    finally:
        for i in (1, 2):
            subprocess.run(['ip', 'netns', 'del', f'jepa{i}'], capture_output=True)


@pytest.fixture(scope='module')
def four(tmp_path_factory):
    "Four processes on one machine"
    folder = tmp_path_factory.mktemp('four')
    trained(folder, nproc=4)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize('how', ['node rank', 'local address', 'neither'])
def test_two_hosts(hosts, four, tmp_path, how):
    "One launcher in each, one rendezvous: the result is that of four processes on one machine"
    both = [
        hosts(
            i,
            tmp_path,
            *{
                'node rank': ['--node-rank', str(i - 1)],
                'local address': ['--local-addr', f'10.77.0.{i}'],
            }.get(how, []),
        )
        for i in (2, 1)
    ]
    try:
        said = [h.communicate(timeout=240)[0] for h in both]
    finally:
        [h.kill() for h in both]
    assert [h.returncode for h in both] == [0, 0], said
    a, b = final(tmp_path), final(four)
    assert seen(tmp_path) == seen(four) and all(torch.equal(a[k], b[k]) for k in a)


def test_the_way_to_a_meeting(capsys, monkeypatch):
    assert _way('127.0.0.1:29500') == ('127.0.0.1', '127.0.0.1')

    def meeting(*words):
        return _meeting(_options().parse_args([*words, '--nnodes', '2']))[0]

    assert meeting('--rdzv-endpoint', '127.0.0.1:9') == [
        ['--rdzv-endpoint', '127.0.0.1:9', '--rdzv-id', 'jepa_lit', '--rdzv-backend', 'c10d']
    ]
    assert (
        'static' in meeting('--rdzv-endpoint', '127.0.0.1:9', '--node-rank', '1')[0]
        and '10.9.9.9' in meeting('--rdzv-endpoint', '127.0.0.1:9', '--local-addr', '10.9.9.9')[0]
    )

    def unknown(*a, **k):
        raise socket.gaierror(-2, 'Name or service not known')

    monkeypatch.setattr(socket, 'getaddrinfo', unknown)
    for endpoint, says in (
        ('here', 'host:port expected, got here'),
        ('no.such.host.invalid:29500', 'no.such.host.invalid:29500 cannot be reached from here'),
    ):
        assert jepa_lit_launch(['--nnodes', '2', '--rdzv-endpoint', endpoint, '--', 'x.py']) == 2
        err = capsys.readouterr().err
        assert says in err and err.count('\n') == 1


def test_the_machines_of_a_meeting(monkeypatch):
    "Only the machine with the endpoint's address opens it; if somebody has, it goes there"
    from jepa_lit import launch as module

    words = _options().parse_args(['--nnodes', '2', '--rdzv-endpoint', 'head:29500'])
    for mine, conf in (('10.0.0.1', ['is_host=1', 'is_host=0']), ('10.0.0.2', ['is_host=0'])):
        monkeypatch.setattr(module, '_way', lambda endpoint: (mine, '10.0.0.1'))
        given, _ = _meeting(words)
        assert [g[-1] for g in given] == conf and all(g[g.index('--local-addr') + 1] == mine for g in given)


# ---- a full disk


def fills(disk):
    "Save with less and less room; what is told, and whether the earlier one can still be read"
    warnings.simplefilter('ignore')
    team, m, out = ParallelContext(True), method('ijepa'), []
    team.wrap(m)
    opt = torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], 1e-3)
    team.save(disk / 'a', m, opt, dict(step=1))
    whole = sum(f.stat().st_size for f in (disk / 'a').iterdir())
    for room in (0.1, 0.5, 0.8, 0.95, 1.0, 1e3):
        if team.rank == 0:
            (disk / 'filler').unlink(missing_ok=True)
            s = os.statvfs(disk)
            (disk / 'filler').write_bytes(bytes(max(0, int(s.f_bavail * s.f_bsize - room * whole))))
        team.barrier()
        try:
            team.save(disk / 'a', m, opt, dict(step=2))
            said = ''
        except OSError as e:
            said = str(e)
        team.barrier()
        out.append(
            (
                said,
                team.load(disk / 'a', m, opt)['step'],
                sorted(p.name for p in disk.iterdir() if p.name != 'filler'),
            )
        )
        team.barrier()
    return out


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / 'disk'
    path.mkdir()
    if subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'none', path], capture_output=True
    ).returncode:
        pytest.skip('may not mount a small disk')
    try:
        yield path
    finally:
        subprocess.run(['umount', path], check=True)


@pytest.mark.slow
def test_parts_on_a_full_disk(disk):
    "At whatever moment the room ends, all processes are told, and nothing is left but the checkpoint before"
    subprocess.run(['mount', '-o', 'remount,size=8m', disk], check=True)  # two of them have to fit
    for out in launch(fills, 2, disk):
        for said, step, names in out:
            assert (step == 1) == bool(said) and names == ['a'] and '\n' not in said, out
        assert out[0][0] and not out[-1][0]


@pytest.mark.slow
def test_a_sharded_run_on_a_full_disk(disk):
    "One line that names the folder, an exit code, earlier checkpoints as they were; and on from there when there is room"
    words = [
        '--data',
        'digits',
        '--shard',
        '--quiet',
        '--set',
        *'method=lejepa steps=16 batch=16 checkpoint_every=4 keep=9 watch_every=0 probe_every=0 widths=8,16 hidden=16 out=8 global_views=2 slices=16 size=16 precision=float32'.split(),
    ]

    def run(*words):
        return subprocess.run(
            [sys.executable, '-m', 'jepa_lit.launch', '--nproc', '2', '--', 'jepa_lit_train', *words],
            capture_output=True,
            text=True,
            env=dict(os.environ, PYTHONPATH=str(root)),
            timeout=240,
        )

    p = run('--out', str(disk / 'run'), *words)
    assert p.returncode == 2, p.stderr[-3000:]
    [said] = [
        l for l in p.stderr.splitlines() if l.startswith('jepa_lit_train: error: ')
    ]  # other ranks are heard only where this one is slow to end
    folder = disk / 'run' / 'checkpoints'
    assert (
        'No space left on device' in said
        and f'the last good checkpoint is {folder}/step-00000008-' in said
        and 'Traceback' not in p.stderr
    )
    assert sorted(f.name.split('-')[0] + f.name.split('-')[1].lstrip('0') for f in folder.iterdir()) == [
        'shards4',
        'shards8',
        'step4',
        'step8',
    ]
    subprocess.run(['mount', '-o', 'remount,size=16m', disk], check=True)
    p = run('--shard', '--quiet', '--resume', str(disk / 'run'))
    assert p.returncode == 0 and 'done at step 16 of 16' in p.stdout, p.stderr[-3000:]
    assert [json.loads(l)['step'] for l in (disk / 'run' / 'log.jsonl').read_text().splitlines()] == list(
        range(16)
    )


@pytest.mark.slow
def test_a_real_slurm(tmp_path):
    "The time limit's signal, a checkpoint, back into the queue, the right result; needs a SLURM that runs: bash tests/slurm_one_node.sh start"
    need('sbatch')
    if subprocess.run(['sinfo', '-h'], capture_output=True).returncode:
        pytest.skip('SLURM is installed, but does not run')
    from slurm import compare

    told = compare(tmp_path, steps=18, limit='00:03:00')
    assert (
        told['state'] == 'COMPLETED'
        and told['exit_code'] == '0:0'
        and told['requeued'] >= 1
        and told['weights_equal_to_an_undisturbed_run']
        and sorted(set(told['steps_taken'])) == list(range(told['steps']))
    )

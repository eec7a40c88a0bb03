"Functions and commands in several processes: started, ended, started again, on one machine and several"

import json, os, signal, socket, subprocess, sys, threading, time
from pathlib import Path
import beartype, jaxtyping, pytest, torch
import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousTimeoutError
from torch.distributed.launcher.api import LaunchConfig
from conftest import need, root
from jepa_lit.launch import find_program, find_route, jepa_lit_launch, launch, resumable, sbatch
from jepa_lit.parallel import open_store

sys.path.insert(0, str(root / 'results'))

# ---- functions that travel


def outside(x):
    return x + OFFSET


OFFSET = 3


CELL = """
import torch
from pathlib import Path as P
COUNT = 4
@torch.no_grad()
def helper(x): return [x * COUNT for _ in range(2)]
class Box:
    def __init__(self, v: P): self.v = helper(v)
def main(n, k=COUNT):
    def inner(): return Box(n).v
    return inner(), k, P("a").name, torch.ones(1).item()
"""


def apply(functions, x):
    return [f(x) for f in functions]


def test_functions_that_travel():
    "What a cell defines with all that it uses, lambdas, closures, and functions whose types are checked"
    cell = dict(__name__='__main__')
    exec(CELL, cell)
    held = [1]

    def closure(x):
        return held + [x + OFFSET]

    typed = jaxtyping.jaxtyped(typechecker=beartype.beartype)(closure)
    functions = [cell['main'], lambda x: x - OFFSET, closure, typed, outside]
    here = [([8, 8], 4, 'a', 1.0), -1, [1, 5], [1, 5], 5]
    assert apply(functions, 2) == here
    assert launch(apply, 2, functions, 2) == [here, here]


def give_back(kind):
    return kind(3)


def test_classes_come_back():
    "An object of a class that only this process defines is one of that class when it returns"

    class Local:
        def __init__(self, x):
            self.x = x

    [back] = launch(give_back, 1, Local)
    assert isinstance(back, Local) and back.x == 3


def test_functions_that_cannot_travel(unchecked):
    lock = threading.Lock()

    def locked(x):
        return lock

    for fn, args, says in (
        (3, (), 'expects a function, got int'),
        (locked, (), "launch cannot send locked, .*cannot pickle '_thread.lock'"),
        (outside, (lock,), "launch cannot send outside, .*cannot pickle '_thread.lock'"),
    ):
        with pytest.raises((ValueError, TypeError), match=says) as e:
            launch(fn, 2, *args)
        assert '\n' not in str(e.value)
    with pytest.raises(ValueError, match='1 to 999 processes, got nproc=0'):
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
    'word', ['$(touch x)', '`touch x`', 'a\ntouch x', "'; touch x; '", '#SBATCH', '\\', '~']
)
def test_words_reach_the_program_of_a_slurm_script_as_they_are(tmp_path, word):
    "What SLURM runs hands each word on; nothing in it becomes code of the shell"
    script = sbatch(['prog', word], nnodes='1:4', options=['comment=$(touch${IFS}x)'])
    assert '#SBATCH --nodes=1-4\n' in script and '--nnodes=1:4' in script
    (tmp_path / 'srun').write_text('#!/bin/sh\nfor w; do last=$w; done; printf %s "$last" > said\n')
    (tmp_path / 'scontrol').write_text('#!/bin/sh\necho here\n')
    for tool in ('srun', 'scontrol'):
        (tmp_path / tool).chmod(0o755)
    env = dict(os.environ, PATH=f"{tmp_path}:{os.environ['PATH']}", SLURM_JOB_ID='7', SLURM_JOB_NODELIST='a')
    assert subprocess.run(['bash'], input=script, text=True, cwd=tmp_path, env=env).returncode == 0
    assert (tmp_path / 'said').read_text() == word and not (tmp_path / 'x').exists()


def test_a_script_that_cannot_be_written():
    "One line and an exit code, where the disk of the output is full"
    with open('/dev/full', 'w') as full:
        p = subprocess.run(
            [sys.executable, '-m', 'jepa_lit.launch', '--slurm', 'x.py'],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ, PYTHONPATH=str(root)),
        )
    assert p.returncode == 1 and p.stderr.count('\n') == 1 and 'No space left on device' in p.stderr


def test_a_linked_program_is_known(tmp_path):
    (tmp_path / 'mine').symlink_to(Path(sys.executable).with_name('jepa_lit_train'))
    assert resumable([str(tmp_path / 'mine')])[1:] == ['--resume', 'auto']


@pytest.mark.parametrize(
    'words, says',
    [
        ([], 'a command expected'),
        (['--nproc', '2'], 'a command expected'),
        (['--nproc', '0', '--', 'x.py'], 'processes: auto, or a number from 1 to 999 expected, got 0'),
        (['--nproc', '1000000', 'x.py'], 'expected, got 1000000'),
        (['--nproc', '²', 'x.py'], 'expected, got ²'),
        (['--grace', '-1', 'x.py'], 'argument --grace'),
        (['--max-restarts', 'x', 'x.py'], "a number from 0 to 9999 expected, got 'x'"),
        (['--grace=--', 'x.py'], 'a value expected after =, got --'),
        (['--npro', '2', 'x.py'], 'unrecognized arguments: --npro'),
        (['--', 'no_such_program'], 'no program named no_such_program'),
        (['no_such_program', '--nproc', '2'], 'no program named no_such_program'),
        (['--', './no/such'], 'no program named ./no/such'),
        (['--', '-m'], 'no program named -m'),
        (['--nnodes', '2', '--', 'x.py'], 'needs --rdzv-endpoint'),
        (['--nnodes', 'x', '--', 'x.py'], 'machines: a number, or least:most of them expected, got x'),
        (['--nnodes', '4:1', '--', 'x.py'], 'expected, got 4:1'),
        (['--nnodes', '2', '--rdzv-endpoint', 'a:99999', 'x.py'], 'host:port expected, got a:99999'),
        (['--time', '1', 'x.py'], '--time goes with --slurm or --submit'),
        (['--sbatch', 'mem=4G', 'x.py'], '--sbatch goes with'),
        (['--node-rank', '1', 'x.py'], '--node-rank goes with --rdzv-endpoint'),
        (['--slurm', '--rdzv-endpoint', 'a:1', 'x.py'], '--rdzv-endpoint is for machines without SLURM'),
        (['--slurm', '--nnodes', '1-4', 'x.py'], 'expected, got 1-4'),
        (['--slurm', '--nnodes', '2\ntouch x', 'x.py'], 'expected, got 2 touch x'),
        (['--slurm', '--nproc', '$(touch x)', 'x.py'], 'expected, got $(touch x)'),
        (['--slurm', '--time', '1\ntouch x', 'x.py'], "time limit: minutes"),
        (['--slurm', '--time', '1; touch x', 'x.py'], "time limit: minutes"),
        (['--slurm', '--sbatch', 'a b', '--', 'x.py'], "'a b': an option of sbatch expected"),
        (['--slurm', '--sbatch', 'comment=a\ntouch x', 'x.py'], 'an option of sbatch expected'),
        (['--slurm', '--sbatch', 'comment=a\rtouch', 'x.py'], 'an option of sbatch expected'),
        (['--slurm', '--sbatch', 'comment=a\x85touch', 'x.py'], 'an option of sbatch expected'),
        (['--slurm', '--sbatch', '', 'x.py'], 'an option of sbatch expected'),
        (['--slurm', '--sbatch=--mem=4G', 'x.py'], 'an option of sbatch expected'),
        (['--slurm', '--sbatch', 'signal=B:TERM@60', 'x.py'], 'the script sets signal itself'),
        (['--slurm', '--sbatch', 'mem=4G', '--sbatch', 'time=1', 'x.py'], 'the script sets time itself'),
        (['--slurm', '--sbatch', 'tim=1', 'x.py'], 'the script sets time itself'),
        (['--slurm', '--sbatch', 'no-requeue', '--', 'x.py'], 'it always queues again'),
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
from jepa_lit.parallel import join
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


def test_programs_with_a_path(tmp_path, capfd, monkeypatch):
    "With a separator a name means that file, as in a shell; without one, what is installed beside Python comes first"
    (tmp_path / 'x.sh').write_text('#!/bin/sh\ntouch $1-$RANK\n')
    (tmp_path / 'x.sh').chmod(0o755)
    monkeypatch.chdir(tmp_path)
    assert jepa_lit_launch(['--nproc', '1', '--', './x.sh', 'a']) == 0 and (tmp_path / 'a-0').exists()
    assert find_program([str(tmp_path / 'x.sh'), 'b']) == ['--no-python', str(tmp_path / 'x.sh'), 'b']
    assert find_program(['/usr/bin/env', 'true']) == ['--no-python', '/usr/bin/env', 'true']
    assert (
        find_program([f'{Path(sys.executable).parent}/jepa_lit_train'])[1]
        == find_program(['jepa_lit_train'])[1]
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


@pytest.fixture
def torchrun(monkeypatch):
    "What torchrun is asked for; nothing is started, and nobody is met"
    asked = []

    def run(args):
        asked.append(args)
        raise RendezvousTimeoutError('nobody there')

    monkeypatch.setattr('torch.distributed.run.run', run)
    monkeypatch.setattr('jepa_lit.launch.PATIENCE', 2.0)
    return asked


def test_the_way_to_a_meeting(capsys, monkeypatch, torchrun):
    assert find_route('127.0.0.1:29500') == ('127.0.0.1', '127.0.0.1')
    endpoint = f'127.0.0.1:{port()}'

    def meeting(*words):
        assert jepa_lit_launch(['--nnodes', '1:2', '--rdzv-endpoint', endpoint, *words, '--', 'x.py']) == 1
        assert 'nobody there' in capsys.readouterr().err
        return torchrun[-1]

    plain = meeting()
    assert (plain.rdzv_backend, plain.rdzv_endpoint, plain.rdzv_id) == ('c10d', endpoint, 'jepa_lit')
    assert plain.rdzv_conf == 'is_host=1' and not plain.local_addr and len(torchrun) == 1
    assert meeting('--local-addr', '10.9.9.9').local_addr == '10.9.9.9'
    static = meeting('--nnodes', '1', '--node-rank', '0')  # alone: with others it waits until they are there
    assert (static.rdzv_backend, static.node_rank) == ('static', 0)

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


@pytest.mark.parametrize('number', [None, 0, 1])
def test_a_machine_that_is_missing_is_named(capfd, torchrun, number):
    "By those who wait for it, and in one line in the end; torchrun is not asked before all have come"
    words = [] if number is None else ['--node-rank', str(number)]
    place = f'127.0.0.1:{port()}'
    assert jepa_lit_launch(['--nnodes', '2', '--rdzv-endpoint', place, *words, 'x.py']) == 1
    waits, ends = [l for l in capfd.readouterr().err.splitlines() if 'socket.cpp' not in l]
    who = {None: f'1 of 2 machines at {place}', 0: f'1 of 2 machines at {place}: 1'}.get(
        number, f'the first to open {place}'
    )
    assert waits == f'waiting for {who}'
    assert ends == f'jepa_lit_launch: error: {who} did not come within 2 seconds' and not torchrun


@pytest.mark.parametrize('leads', [False, True])
def test_a_stranger_at_the_port_does_not_keep_anybody(capfd, torchrun, leads):
    "Who accepts and never answers"
    with socket.create_server(('127.0.0.1', 0)) as stranger:
        place = '127.0.0.1:%d' % stranger.getsockname()[1]
        words = [] if leads else ['--node-rank', '1']
        assert jepa_lit_launch(['--nnodes', '2', '--rdzv-endpoint', place, *words, 'x.py']) == 1
    said = [l for l in capfd.readouterr().err.splitlines() if l.startswith(('waiting', 'jepa_lit'))]
    assert said[-1].endswith(f"an answer of torch's store at {place} did not come within 2 seconds")
    assert len(said) == 2


def test_only_the_machine_of_the_endpoint_opens_it(capfd, monkeypatch, torchrun):
    "If somebody has, it goes there"
    place = f'127.0.0.1:{port()}'
    monkeypatch.setattr('jepa_lit.launch.find_route', lambda endpoint: ('10.0.0.2', '10.0.0.1'))
    both = ['--nnodes', '2', '--rdzv-endpoint', place, 'x.py']
    assert jepa_lit_launch(both) == 1 and f'the first to open {place}' in capfd.readouterr().err
    monkeypatch.setattr('jepa_lit.launch.find_route', lambda endpoint: ('10.0.0.1', '10.0.0.1'))
    other = open_store('127.0.0.1', int(place.split(':')[1]), True, 10.0)
    dist.PrefixStore('jepa_lit', other).add('arrived', 1)
    assert jepa_lit_launch(both) == 1 and torchrun[0].local_addr == '10.0.0.1'


IGNORES = """import os, pathlib, signal, sys, time
from jepa_lit.launch import jepa_lit_launch
for name in ('SIGHUP', 'SIGINT'): signal.signal(getattr(signal, name), signal.SIG_IGN)
sys.exit(jepa_lit_launch(['--nproc', '1', sys.argv[1]]))
"""


@pytest.mark.skipif(
    'signals_to_handle' not in LaunchConfig.__dataclass_fields__, reason="torch's launcher takes all signals"
)
def test_ignored_signals_stay_ignored(tmp_path):
    "As under nohup, and in a background job of a shell without job control"
    (tmp_path / 'x.py').write_text(
        'import os, signal\n'
        'for s in (signal.SIGHUP, signal.SIGINT): os.kill(os.getppid(), s); os.kill(os.getpid(), s)\n'
    )
    p = subprocess.run(
        [sys.executable, '-c', IGNORES, str(tmp_path / 'x.py')],
        env=dict(os.environ, PYTHONPATH=str(root)),
        capture_output=True,
        text=True,
    )
    assert p.returncode == 0, p.stderr


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

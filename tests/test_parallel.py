"Several processes: equal to one, also after a checkpoint and on a full disk"

import hashlib, json, os, pickle, signal, socket, subprocess, sys, time, warnings
from pathlib import Path
import pytest, torch
import torch.distributed as dist
from torch import nn
from conftest import root
from jepa_lit.launch import launch
from jepa_lit.parallel import ParallelContext, convert_batchnorm, folder_digest, join

sys.path.insert(0, str(root / 'results'))
from processes import DOUBLE, SINGLE, cast, everything, method, train

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


def extra(parallel=None):
    m = Extra()
    model = parallel.wrap(m) if parallel else m
    if parallel:
        assert parallel.wrap(m) is model and parallel.wrap(model) is model
    opt, x = torch.optim.AdamW(m.parameters(), 0.1), torch.arange(21.0).view(7, 3) / 21
    a, b = parallel.split(7) if parallel else (0, 7)
    m.share = parallel.size * (b - a) / 7 if parallel else 1.0
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


def norm(i, parallel=None):
    "Outputs, gradients, running moments of a batch norm in training, and outputs in evaluation"
    kind, how = KINDS[i]
    torch.manual_seed(i)
    m = norms(kind, **how)
    x = torch.randn(7, *[(5,), (2, 6), (2, 6, 4)][kind], dtype=DOUBLE) * 3 + 1
    w = torch.randn(7, 3, *[(), (4,), (4, 2)][kind], dtype=DOUBLE)
    a, b = parallel.split(7) if parallel else (0, 7)
    if parallel:
        convert_batchnorm(m)
    for _ in range(2):
        m.zero_grad()
        y = m(x[a:b])
        ((parallel.size if parallel else 1) * (y * w[a:b]).sum()).backward()
    grads = [p.grad for p in m.parameters()]
    if parallel:
        for g in grads:
            dist.all_reduce(g)
            g /= parallel.size
    return dict(
        y=y.detach(),
        grads=grads,
        state=m.state_dict(),
        eval=m.eval()(x[:1]).detach(),
        names=list(m.state_dict()),
        kind=isinstance(m[1], (nn.BatchNorm1d, nn.BatchNorm2d)),
    )


def broken(parallel):
    "A value that is not finite in one process only: all have to see it"
    m = method('lejepa')
    model = parallel.wrap(m)
    views = m.prepare(
        torch.full((parallel.size, 1, 8, 8), 9, dtype=torch.uint8),
        torch.Generator().manual_seed(0),
        rows=(0, parallel.size),
    )
    views = [v[:, parallel.rank : parallel.rank + 1].clone() for v in views]
    if parallel.rank == 1:
        views[0][0, 0, 0, 0, 0] = float('nan')
    return model.train()(views)[0].item()


def half(path, shard):
    "Two steps, a checkpoint, two more"
    parallel = ParallelContext(shard)
    m = method('ijepa', DOUBLE)
    model, opt = parallel.wrap(m), torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], 1e-3)
    start = 0
    if path.exists():
        start = parallel.load(path, m, opt)['step']
    for step in range(start, start + 2):
        a, b = parallel.split(7)
        m.share = parallel.size * (b - a) / 7
        pixels = torch.randint(
            256, (7, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(step)
        )
        x = cast(m.prepare(pixels[a:b], torch.Generator().manual_seed(step), rows=(a, 7)), DOUBLE)
        opt.zero_grad()
        model.train()(x)[0].backward()
        opt.step()
        m.after_step(step)
    if not start:
        parallel.save(path, m, opt, dict(step=2, note='two'))
    with torch.no_grad():
        z = m.eval().embed(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    return (
        start,
        {k: v.clone() for k, v in parallel.state(m).items()},
        z,
        [v.numel() for v in m.parameters()],
        sum((v.to_local() if hasattr(v, 'to_local') else v).numel() for v in m.parameters()),
    )


def three(path):
    warnings.simplefilter('ignore')
    parallel = ParallelContext()
    out = dict(
        cases=everything(CASES, 16),
        extra=extra(ParallelContext(find_unused_parameters=True)),
        norms=[norm(i, parallel) for i in range(len(KINDS))],
        broken=broken(parallel),
        split=[parallel.split(n) for n in (3, 7, 64)],
        mean=parallel.mean(dict(a=parallel.rank, b=torch.tensor(1.0, requires_grad=True))),
        any=(parallel.any(parallel.rank == 2), parallel.any(False)),
        threads=torch.get_num_threads(),
    )
    out['half'] = half(path / 'sharded', True)
    try:
        parallel.split(2)
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


def hostile_index(path):
    return b'cos\nsystem\n(S\'touch ' + str(path).encode() + b'\'\ntR.'


GETTER = (
    b"cbuiltins\ngetattr\n(ctorch\nSize\nS'mro'\ntR."  # Python 3.11.0 writes members of an enumeration so
)


def two(path):
    warnings.simplefilter('ignore')
    out = dict(half=half(path / 'sharded', True))
    index = (path / 'sharded' / '.metadata').read_bytes()
    parallel, m = ParallelContext(True), method('ijepa', DOUBLE)
    parallel.wrap(m)
    opt = torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], 1e-3)

    def error(change):
        if parallel.rank == 0:
            change()
        parallel.barrier()
        try:
            parallel.load(path / 'sharded', m, opt)
        except (ValueError, FileNotFoundError) as e:
            return str(e)
        finally:
            parallel.barrier()

    folder = path / 'sharded'
    digests = (folder / 'digests.json').read_bytes()

    def write(name, content, told=True):
        "A file of the checkpoint, with a digest that is right unless it is not told"
        (folder / name).write_bytes(content)
        known = json.loads(digests)
        if told:
            known[name] = hashlib.blake2b(content, digest_size=16).hexdigest()
        (folder / 'digests.json').write_text(json.dumps(known))

    def flip():
        part = bytearray((folder / '__0_0.distcp').read_bytes())
        part[len(part) // 2] ^= 1
        write('__0_0.distcp', part, told=False)

    def pipe():
        (folder / '__0_0.distcp').unlink()
        os.mkfifo(folder / '__0_0.distcp')

    def back():
        (folder / '__0_0.distcp').unlink()
        write('__0_0.distcp', whole)
        (folder / '.DS_Store').touch()  # a file that is not of the checkpoint
        folder.rename(path / '.sharded.old')  # as a kill between the two moves of `save` leaves it

    def way():
        (path / '.other.new').symlink_to(path)
        (path / '.other.old').touch()

    whole, before = (folder / '__0_0.distcp').read_bytes(), folder_digest(folder)
    parallel.barrier()  # all have read it
    out['pipe'] = error(pipe)
    out['back'] = error(back)
    if parallel.rank == 0:
        way()
    parallel.barrier()
    parallel.save(path / 'other', m, opt, {})
    out['errors'] = [
        error(flip),
        error(lambda: write('__0_0.distcp', whole) or write('.metadata', hostile_index(path / 'bad'))),
        error(lambda: write('.metadata', GETTER)),
        error(lambda: write('.metadata', index[:200])),
        error(lambda: write('.metadata', index) or write('extra.pt', pickle.dumps(Path('x')))),
        error(lambda: (folder / 'digests.json').unlink()),
    ]
    out['digest'] = before
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
        flipped, hostile, getter, short, plain, none = o['errors']
        assert (
            'do not have the digests' in flipped
            and 'asks for os.system' in hostile
            and 'asks for Size.mro' in getter
            and 'damaged' in short
            and 'damaged' in plain
            and 'is not a sharded checkpoint' in none
        )
        assert not any('\n' in e for e in o['errors'])
        assert 'is damaged' in o['pipe'] and o['back'] is None
    assert any('a plain file is expected' in o['pipe'] for o in out)  # by the process that met it
    assert sorted(p.name for p in path.iterdir()) == ['other', 'sharded']
    assert not (path / 'bad').exists() and len({o['digest'] for o in out}) == 1


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


# ---- signals while processes wait for each other


def test_a_process_says_who_is_missing(monkeypatch, capfd):
    place = dict(RANK='1', WORLD_SIZE='3', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port()))
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TimeoutError, match='the first to open 127.0.0.1:.* did not come within 1.5 seconds'):
        join(1.5)
    monkeypatch.setenv('RANK', '0')
    with pytest.raises(TimeoutError, match='2 of 3 processes: 1, 2 did not come within 1.5 seconds'):
        join(1.5)
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith('waiting')]
    assert said[-1] == 'waiting for 2 of 3 processes: 1, 2' and len(said) == 2
    monkeypatch.setenv('WORLD_SIZE', 'three')
    with pytest.raises(ValueError, match='RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT expected'):
        join(1.5)


def port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def test_a_process_that_waits_for_others_can_be_ended():
    "Where it waits, a handler in Python is not heard"
    at = port()
    code = 'import signal; from jepa_lit.parallel import join; signal.signal(signal.SIGTERM, lambda *a: None); join(60)'
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


SIGNALS = """
import signal
from jepa_lit.parallel import join
def handler(*_): pass
given = {signal.SIGTERM: handler, signal.SIGINT: handler, signal.SIGUSR1: signal.SIG_IGN}
for s, h in given.items(): signal.signal(s, h)
join(60)
assert all(signal.getsignal(s) == h for s, h in given.items())
"""


def test_signals_are_as_before_once_all_have_met():
    "Handlers come back; what was ignored, as SIGINT is in a background job, stays ignored"
    place = dict(RANK='0', WORLD_SIZE='1', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port()))
    p = subprocess.run(
        [sys.executable, '-c', SIGNALS],
        env=dict(os.environ, PYTHONPATH=str(root), **place),
        capture_output=True,
    )
    assert p.returncode == 0, p.stderr.decode()


# ---- a full disk


def fills(disk):
    "Save with less and less room; what is told, and whether the earlier one can still be read"
    warnings.simplefilter('ignore')
    parallel, m, out = ParallelContext(True), method('ijepa'), []
    parallel.wrap(m)
    opt = torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], 1e-3)
    parallel.save(disk / 'a', m, opt, dict(step=1))
    whole = sum(f.stat().st_size for f in (disk / 'a').iterdir())
    for room in (0.1, 0.5, 0.8, 0.95, 1.0, 1e3):
        if parallel.rank == 0:
            (disk / 'filler').unlink(missing_ok=True)
            s = os.statvfs(disk)
            (disk / 'filler').write_bytes(bytes(max(0, int(s.f_bavail * s.f_bsize - room * whole))))
        parallel.barrier()
        try:
            parallel.save(disk / 'a', m, opt, dict(step=2))
            said = ''
        except OSError as e:
            said = str(e)
        parallel.barrier()
        out.append(
            (
                said,
                parallel.load(disk / 'a', m, opt)['step'],
                sorted(p.name for p in disk.iterdir() if p.name != 'filler'),
            )
        )
        parallel.barrier()
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
        *'steps=16 batch=16 checkpoint_every=4 keep_last=9 watch_every=0 probe_every=0 widths=8,16 hidden=16 out=8 global_views=2 slices=16 size=16 precision=float32'.split(),
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

"Checkpoints that are damaged, hostile, cut off or in the way; and a training process that is killed at random moments"

import contextlib, hashlib, json, os, pickle, random, resource, signal, subprocess, sys, threading, time
from multiprocessing import get_context
from pathlib import Path
import pytest, torch

root = Path(__file__).resolve().parent.parent
STEPS = 40


# ---- a training process and its killer; this file is also a program, so that torch is imported once and then forked


def _data(workers, folder):
    "Digits in memory, or on disk where workers are to read them"
    from PIL import Image
    from small import Files, data

    some = data.select(torch.arange(160))
    if not workers:
        return some
    (folder / 'images').mkdir(exist_ok=True)
    paths = [str(folder / f'images/{i}.png') for i in range(len(some))]
    for i, p in enumerate(paths):
        if not os.path.exists(p):
            Image.fromarray(some.pixels[i, 0].numpy()).save(p)
    return Files(paths, size=32)


def _train(kind, workers, folder, run):
    "What the child does"
    import small
    from jepa_lit.callbacks import Checkpoint, HealthWatch, MetricsLogger, NonFiniteGuard, Schedule
    from jepa_lit.checkpoints import Checkpoints
    from jepa_lit.training import fit, stream

    data, method, here = _data(workers, folder), small.dropping(kind), folder / run
    here.mkdir(exist_ok=True)
    store = Checkpoints(here / 'checkpoints')
    store.tidy()

    def truncate(step):
        lines = (here / 'log').read_text().splitlines() if (here / 'log').exists() else []
        (here / 'log').write_text(''.join(l + '\n' for l in lines[:step]))

    def write(line):
        with open(here / 'log', 'a') as f:
            f.write(json.dumps(line) + '\n')

    callbacks = [
        Checkpoint(store, 2),
        Schedule(2e-3),
        NonFiniteGuard(),
        HealthWatch(small.data.pixels[:64], 10),
        MetricsLogger(write, truncate),
    ]
    fit(method, stream(data, 16, workers=workers), small.adamw(method), STEPS, callbacks)
    torch.save(method.state_dict(), folder / f'{run}.pt')


def _kill_often(method, workers, kills, folder):
    "Kill a training process so often, every other time while it writes a checkpoint; then let it end, and compare"
    folder, draw, mid = Path(folder), random.Random(kills), 0
    _data(workers, folder)  # all imports happen here, once
    fork = get_context('fork')

    def start(run):
        p = fork.Process(target=_train, args=(method, workers, folder, run))
        p.start()
        return p

    p = start('whole')
    p.join()
    assert p.exitcode == 0
    log, tmp = folder / 'killed/log', folder / 'killed/checkpoints'
    targets = sorted(draw.choices(range(STEPS - 3), k=kills))
    for i, target in enumerate(targets):
        p = start('killed')
        while p.is_alive() and not (log.exists() and log.read_bytes().count(b'\n') > target):
            time.sleep(0.001)
        limit = time.time() + 3
        if i % 2:
            while (
                p.is_alive()
                and time.time() < limit
                and not any(f.name.endswith('.tmp') for f in os.scandir(tmp))
            ):
                pass
        else:
            time.sleep(draw.random() * 0.02)
        assert p.is_alive(), f'the process ended by itself, with {p.exitcode}'
        os.kill(p.pid, signal.SIGKILL)
        p.join()
        assert p.exitcode == -signal.SIGKILL
        mid += any(f.name.endswith('.tmp') for f in os.scandir(tmp)) if tmp.exists() else 0
    p = start('killed')
    p.join()
    assert p.exitcode == 0
    a, b = [torch.load(folder / f'{run}.pt', weights_only=True) for run in ('whole', 'killed')]
    differ = [k for k in a if not torch.equal(a[k], b[k])]
    assert not differ and a.keys() == b.keys(), differ
    one, two = [[json.loads(l) for l in open(folder / run / 'log')] for run in ('whole', 'killed')]
    for line in one + two:
        line.pop('images_per_second')
    assert one == two, 'the logs differ'
    assert not list(tmp.glob('.*.tmp')) and len(list(tmp.glob('step-*'))) <= 3
    print(
        f'{method}, {workers} workers: {kills} kills, {mid} of them while a checkpoint was written: equal to the bit'
    )


def _killed(cases, kills, folder):
    "One thread: a process that has used several of OpenMP's leaves them behind when it forks, and the child waits for them for ever"
    env = {**os.environ, 'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        [sys.executable, __file__, cases, str(kills), str(folder)],
        env=env,
        capture_output=True,
        text=True,
        timeout=60 + 30 * kills,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    return done.stdout


def test_killed_at_random_moments(tmp_path):
    assert _killed('lejepa-0,ijepa-2', 3, tmp_path).count('3 kills') == 2


@pytest.mark.slow
@pytest.mark.parametrize('case', ['lejepa-0', 'lejepa-2', 'ijepa-0', 'ijepa-2'])
def test_killed_twenty_times(case, tmp_path):
    said = _killed(case, 20, tmp_path)
    assert int(said.split(' of them')[0].split()[-1]) > 0, 'no kill fell into the writing of a checkpoint'


# ---- the files


def checkpoints():
    import jepa_lit.checkpoints as c

    return c


def state(step=1, n=10):
    return dict(step=step, method={'w': torch.full((n,), float(step))})


@pytest.fixture
def store(tmp_path):
    s = checkpoints().Checkpoints(tmp_path / 'run')
    for i in (1, 2, 3):
        s.save(state(i))
    s.wait()
    return s


@pytest.mark.parametrize('damage', ['truncated', 'empty', 'flipped', 'longer', 'exchanged'])
def test_newest_is_damaged(damage, store):
    (_, old), (_, new) = store.files()
    b = new.read_bytes()
    new.write_bytes(
        dict(
            truncated=b[:-1],
            empty=b'',
            flipped=b[:700] + bytes([b[700] ^ 16]) + b[701:],
            longer=b + b'0',
            exchanged=old.read_bytes(),
        )[damage]
    )
    with pytest.warns(UserWarning, match=f'{new.name} is damaged.*going on from step 2'):
        assert store.load()['step'] == 2
    for _, p in store.files():
        p.write_bytes(b'')
    with pytest.raises(ValueError, match='no checkpoint .* can be read') as e:
        store.load()
    assert '\n' not in str(e.value) and len(store.files()) == 2


def test_every_flipped_bit_is_noticed(store):
    read, (_, path) = checkpoints().read_checkpoint, store.files()[-1]
    b = path.read_bytes()
    for i in range(0, 8 * len(b), 97):
        bad = bytearray(b)
        bad[i // 8] ^= 1 << i % 8
        path.write_bytes(bytes(bad))
        with pytest.raises(ValueError, match='damaged'):
            read(path)
    path.write_bytes(b)
    assert read(path)['step'] == 3


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def named(folder, content, step=9):
    "A file that carries the right digest"
    p = folder / f'step-{step:08d}-{hashlib.blake2b(content, digest_size=16).hexdigest()}.pt'
    p.write_bytes(content)
    return p


@pytest.mark.parametrize('kind', ['pickle', 'torch', 'tensor'])
def test_hostile_and_foreign(kind, store, tmp_path):
    owned = str(tmp_path / 'owned')
    torch.save(dict(step=9, method=Hostile(owned)), tmp_path / 'h.pt')
    torch.save(torch.zeros(3), tmp_path / 't.pt')
    p = named(
        store.folder,
        dict(
            pickle=pickle.dumps(Hostile(owned)),
            torch=(tmp_path / 'h.pt').read_bytes(),
            tensor=(tmp_path / 't.pt').read_bytes(),
        )[kind],
    )
    with pytest.raises(ValueError, match='not a checkpoint of jepa_lit') as e:
        checkpoints().read_checkpoint(p)
    assert '\n' not in str(e.value)
    with pytest.warns(UserWarning, match='going on from step 3'):
        assert store.load()['step'] == 3
    assert not os.path.exists(owned)


def _full(store, how, tmp_path):
    "Write a large state while there is no room"
    if how == 'limit':
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        try:
            store.save(state(4, 100_000))
            store.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    else:
        store.save(state(4, 1_000_000))
        store.wait()


@pytest.mark.parametrize('how', ['limit', 'disk'])
def test_full_disk(how, store, tmp_path):
    "A file that may not grow; and, where we may mount one, a disk of 1 MB"
    disk = tmp_path / 'disk'
    disk.mkdir()
    if (
        how == 'disk'
        and subprocess.run(
            ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'none', disk], capture_output=True
        ).returncode
    ):
        pytest.skip('may not mount a small disk')
    try:
        if how == 'disk':
            store = checkpoints().Checkpoints(disk / 'run')
            for i in (2, 3):
                store.save(state(i))
            store.wait()
        before = {p: p.read_bytes() for _, p in store.files()}
        with pytest.raises(OSError, match='No space left' if how == 'disk' else 'too large'):
            _full(store, how, tmp_path)
        assert {p: p.read_bytes() for p in store.folder.iterdir()} == before and store.load()['step'] == 3
        store.save(state(5))
        store.wait()
        assert store.load()['step'] == 5  # there is room again
    finally:
        if how == 'disk':
            subprocess.run(['umount', disk], check=True)


def test_what_is_no_plain_file_is_passed_over(store):
    "A pipe, a folder and a link to nowhere in the places of checkpoints; and a link in that of one in the making"
    for i, make in enumerate((os.mkfifo, os.mkdir, lambda p: os.symlink('nowhere', p))):
        make(store.folder / f'step-0000000{7 + i}-{"0" * 32}.pt')
    with pytest.warns(UserWarning, match='not a checkpoint.*going on from step 3'):
        assert store.load()['step'] == 3
    assert store.last() == store.files()[2 - 1][1]
    mine = store.folder / 'mine'
    mine.write_text('years of work')
    (store.folder / f'.step-00000004.{os.getpid()}.tmp').symlink_to(mine)
    store.save(state(4))
    store.wait()
    assert mine.read_text() == 'years of work' and store.load()['step'] == 4


def test_one_in_flight_and_errors_come_back(tmp_path, monkeypatch):
    "A save does not wait for its own file, only for that of the save before"
    c = checkpoints()
    order, go, real = [], threading.Event(), c.write_checkpoint

    def held(folder, state, step):
        order.append(('begin', step))
        assert go.wait(60)
        order.append(('end', step))
        return real(folder, state, step)

    monkeypatch.setattr(c, 'write_checkpoint', held)
    s = c.Checkpoints(tmp_path)
    s.save(state(1))
    assert ('end', 1) not in order and not s.files()  # it has come back, and the file is held
    go.set()
    s.save(state(2))
    assert order[:2] == [('begin', 1), ('end', 1)] and [i for i, _ in s.files()][:1] == [1]
    s.wait()
    assert order[2:] == [('begin', 2), ('end', 2)]

    def breaks(*_):
        raise RuntimeError('the thread fails')

    monkeypatch.setattr(c, 'write_checkpoint', breaks)
    s.save(state(3))
    with pytest.raises(RuntimeError, match='the thread fails'):
        s.wait()
    s.wait()
    assert s.load()['step'] == 2


def test_rotation_keeps_the_best_and_what_it_cannot_read(tmp_path):
    s = checkpoints().Checkpoints(tmp_path, keep_last=1)
    for i in range(1, 6):
        s.save(state(i), best=2)
    s.wait()
    assert [i for i, _ in s.files()] == [2, 5]
    s.files()[-1][1].write_bytes(b'bad')
    with pytest.warns(UserWarning):
        assert s.load()['step'] == 2
    s.save(state(3), best=2)
    s.wait()
    assert [i for i, _ in s.files()] == [2, 3, 5]  # the bad one is of a later step: left alone
    s.save(state(5), best=2)
    s.wait()
    assert [i for i, _ in s.files()] == [2, 5] and s.load()['step'] == 5
    (tmp_path / 'notes.txt').write_text('mine')
    (tmp_path / 'step-1.pt').write_text('mine too')
    s.save(state(6))
    s.wait()
    assert {'notes.txt', 'step-1.pt'} <= {p.name for p in tmp_path.iterdir()}


def test_a_reader_beside_the_writer(tmp_path):
    "Files that are rotated away while somebody lists them"
    s, look = checkpoints().Checkpoints(tmp_path, keep_last=1), checkpoints().Checkpoints(tmp_path)
    for i in range(1, 60):
        s.save(state(i))
        for _ in range(20):
            look.files()
    s.wait()
    assert [i for i, _ in look.files()] == [59]


def refusal(c, folder):
    "What one is told who wants the folder, or nothing"
    try:
        with c.locked(folder):
            return None
    except ValueError as e:
        return str(e)


def test_lock(tmp_path):
    "Another process is refused; a fork of the holder does not keep the lock alive; within one thread it is had once"
    c = checkpoints()
    code = f"""import filelock, os, time
lock = filelock.FileLock({str(tmp_path / '.lock')!r}); lock.acquire(); open(lock.lock_file, 'w').write(f'process {{os.getpid()}} on here')
if not os.fork(): print('mine', flush=True)  # the child, which has let go of the lock by then
time.sleep(60)"""  # what `locked` does, without the seconds that torch takes to import
    p = subprocess.Popen(
        [sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert p.stdout.readline() == 'mine\n'
        with pytest.raises(ValueError, match=f'in use by process {p.pid} on') as e:
            with c.locked(tmp_path):
                pass
        assert '\n' not in str(e.value)
        os.kill(p.pid, signal.SIGKILL)
        p.wait()
        os.killpg(p.pid, 0)  # its child lives on
        with c.locked(tmp_path), c.locked(tmp_path):
            said = []
            thread = threading.Thread(target=lambda: said.append(refusal(c, tmp_path)))
            thread.start()
            thread.join()
            assert f'in use by process {os.getpid()} on' in said[0]  # another thread of ours
        assert refusal(c, tmp_path) is None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(p.pid, signal.SIGKILL)
        p.stdout.close()


def test_random_states_come_back(tmp_path):
    import numpy as np

    c = checkpoints()

    def draws():
        return [
            torch.rand(1).item(),
            random.random(),
            np.random.rand(),
            torch.nn.functional.dropout(torch.ones(8)).tolist(),
        ]

    before = torch.get_rng_state()
    with c.own_random(3, 'x'):
        draws()
        s = c.read_checkpoint(c.write_checkpoint(tmp_path, dict(step=1, random=c.random_states()), 1))[
            'random'
        ]
        later = draws()
        c.set_random_states(s)
        assert draws() == later
    assert torch.equal(torch.get_rng_state(), before)


def test_what_could_not_be_read_back_is_not_saved(tmp_path, unchecked):
    "A version of torch is a class of text, a rate by NumPy one of numbers; other things are refused at once"
    import numpy as np

    s = checkpoints().Checkpoints(tmp_path)
    s.save(dict(step=1, torch=torch.__version__, lr=np.float64(0.5), last=None))
    s.wait()
    assert s.load() == dict(step=1, torch=str(torch.__version__), lr=0.5, last=None)
    for odd in (np.int64(3), {1, 2}, Path('x'), print):
        with pytest.raises(TypeError, match=f'a checkpoint keeps .* got {type(odd).__name__}'):
            s.save(dict(step=2, odd=[odd]))


def test_tidy_takes_what_a_killed_writer_left(tmp_path):
    for name in ('.shards-00000004.new', '.shards-00000004.old', 'shards-00000004', '.shards-00000008.old'):
        (tmp_path / name).mkdir()
    (tmp_path / '.step-00000004.7.tmp').touch()
    checkpoints().Checkpoints(tmp_path).tidy()
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {'shards-00000004', '.shards-00000008.old'}  # the last one may be all there is of step 8


def test_snapshot_keeps_layout_and_types():
    c = checkpoints()
    w = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    s = c.snapshot(dict(w=w, deep=[dict(k=(w, 1.5, None, 'x'))]))
    assert (
        s['w'].is_contiguous(memory_format=torch.channels_last)
        and not s['w'].requires_grad
        and s['deep'][0]['k'][1:] == (1.5, None, 'x')
    )
    with torch.no_grad():
        old = w.clone()
        w.zero_()
    assert torch.equal(s['w'], old) and torch.equal(s['deep'][0]['k'][0], old)


if __name__ == '__main__':
    for case in sys.argv[1].split(','):
        here = Path(sys.argv[3]) / case
        here.mkdir()
        _kill_often(case.split('-')[0], int(case.split('-')[1]), int(sys.argv[2]), here)

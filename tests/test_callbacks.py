"What stands at the joints of the loop: runs that are stopped, killed, damaged or full, and go on as if nothing had been"

import math, os, pickle, signal, threading
from pathlib import Path
import pytest, torch
from torch import nn
from jepa_lit.callbacks import (
    Average,
    Checkpoint,
    Compile,
    HealthWatch,
    MetricsLogger,
    NonFiniteGuard,
    OnlineProbe,
    Progress,
    Schedule,
    Signals,
    TensorBoard,
    TimeLimit,
    heed,
    schedule,
    shown_weights,
)
from jepa_lit.checkpoints import Checkpoints, Damaged, write_checkpoint
from jepa_lit.files import digest
from jepa_lit.training import Callback, SingleProcess, TrainState, fit, stream
from small import KINDS, adamw, data, equal, fresh

both = pytest.mark.parametrize('kind', KINDS)


class Acts(Callback):
    "Does something after the step of a number"

    def __init__(self, step, act):
        self.step, self.act = step, act

    def after_step(self, state):
        if state.step - 1 == self.step:
            self.act()


def train(method, folder=None, *more, steps=8, every=3, images=data, batch=32, workers=0, keep=None, **how):
    "A run with checkpoints in a folder; its state"
    kept = [Checkpoint(Checkpoints(folder), every, **(keep or {}))] if folder else []
    callbacks = [*kept, Signals(), Schedule(2e-3), NonFiniteGuard(), *more]
    return fit(method, stream(images, batch, workers=workers), adamw(method), steps, callbacks, **how)


def last(folder):
    return Checkpoints(folder).load()['step']


def kill(number):
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    'number, status, kind',
    [(signal.SIGINT, 'interrupted', 'lejepa'), (signal.SIGTERM, 'signalled', 'ijepa')]
    + [(getattr(signal, 'SIGUSR1', signal.SIGTERM), 'signalled', 'lejepa')],
    ids=['SIGINT', 'SIGTERM', 'SIGUSR1'],
)
def test_signals_save_and_the_resume_is_exact(number, status, kind, tmp_path):
    state = train(fresh(kind), tmp_path, Acts(1, kill(number)))
    assert state.status == status and state.step == last(tmp_path) == 3
    whole, part, lines = fresh(kind), fresh(kind), []
    state = train(part, tmp_path, MetricsLogger(lines.append))
    train(whole)
    assert (state.start, state.status) == (3, 'done') and [l['step'] for l in lines] == list(range(3, 8))
    equal(whole, part)
    assert train(part, tmp_path).step == 8  # there is nothing left to do


def test_a_signal_after_the_last_step_is_heard(tmp_path):
    state = train(fresh(), tmp_path, Acts(7, kill(signal.SIGTERM)))
    assert (state.status, state.step, last(tmp_path)) == ('signalled', 8, 8)


def test_time_limit_and_second_interrupt(tmp_path):
    assert (
        train(fresh(), tmp_path, TimeLimit(0.0)).status == 'stopped by the time limit' and last(tmp_path) == 1
    )
    assert train(fresh(), None, TimeLimit(0.0), steps=1).status == 'done'

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1
    handlers = [signal.getsignal(s) for s in numbers]
    with pytest.raises(KeyboardInterrupt) as e:
        train(fresh(), tmp_path, Acts(3, twice))
    assert handlers == [signal.getsignal(s) for s in numbers]
    assert last(tmp_path) == 3 and e.value.last_checkpoint.name.startswith('step-00000003')
    assert train(fresh(), tmp_path).start == 3  # the checkpoint is whole


@pytest.mark.parametrize('name', ['SIGHUP', 'SIGINT', 'SIGTERM', 'SIGUSR1'])
def test_an_ignored_signal_stays_ignored(name, tmp_path):
    "`nohup`, and a job in the background of a shell"
    number = getattr(signal, name, None) or pytest.skip(f'no {name}')
    before = signal.signal(number, signal.SIG_IGN)
    try:
        assert train(fresh(), None, Acts(1, kill(number))).status == 'done'
        with heed(lambda *_: pytest.fail('it was heard')):
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_second_sigterm_does_not_stop_at_once(tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    assert train(fresh(), tmp_path, Acts(3, twice)).status == 'signalled' and last(tmp_path) == 5


@pytest.mark.parametrize(
    'damage', ['latest', 'all', 'other', 'batch', 'seed', 'steps', 'foreign', 'identity']
)
def test_bad_checkpoint(damage, tmp_path, unchecked):
    train(fresh(), tmp_path, keep=dict(identity=dict(lr=1)))
    files = [p for _, p in Checkpoints(tmp_path).files()]
    if damage == 'latest':
        files[-1].write_bytes(files[-1].read_bytes()[:-7])
        part, whole = fresh(), fresh()
        with pytest.warns(UserWarning, match='damaged.*going on from step 6'):
            assert train(part, tmp_path, keep=dict(identity=dict(lr=1))).start == 6
        train(whole)
        return equal(whole, part)
    for p in files if damage == 'all' else ():
        p.write_bytes(b'')
    if damage == 'foreign':
        write_checkpoint(tmp_path, dict(step=8, identity=dict(lr=1), weights=torch.zeros(2)), 8)
        files[-1].unlink()
    how = dict(batch=dict(batch=16), steps=dict(steps=5), seed=dict(seed=1)).get(damage, {})
    how['keep'] = dict(identity=dict(lr=2 if damage == 'identity' else 1))
    said = dict(
        all='can be read',
        other='does not fit',
        batch='batch was 32 .* and is 16',
        seed='seed was 0 .* and is 1',
        steps='beyond the 5 steps',
        foreign='does not fit',
        identity='is of another run: lr was 1 and is 2',
    )[damage]
    method = fresh('wide') if damage == 'other' else fresh()
    with pytest.raises(ValueError, match=said) as e:
        train(method, tmp_path, **how)
    assert (
        '\n' not in str(e.value)
        and '--' not in str(e.value)
        and len(list(tmp_path.glob('step-*'))) == len(files)
    )


def test_a_checkpoint_stands_first(tmp_path, unchecked):
    method = fresh()
    with pytest.raises(ValueError, match='first callback'):
        fit(method, stream(data, 32), adamw(method), 2, [Signals(), Checkpoint(Checkpoints(tmp_path))])


def test_what_differs_is_said(tmp_path):
    "More images than before, or other threads: the run goes on otherwise than it would have"
    train(fresh(), tmp_path, TimeLimit(0.0))
    with pytest.warns(UserWarning, match='images was 1438 .* is 1400'):
        train(fresh(), tmp_path, steps=2, images=data.select(torch.arange(1400)))
    torch.set_num_threads(torch.get_num_threads() + 1)
    with pytest.warns(UserWarning, match='threads was'):
        train(fresh(), tmp_path, steps=3)


def broken(kind, how, *steps):
    "A method whose loss or gradient is not finite at some steps"
    method, n = fresh(kind), [0]
    real = type(method).forward

    def forward(self, batch):
        loss, logs = real(self, batch)
        n[0] += 1
        if n[0] - 1 in steps and how == 'loss':
            loss = loss * float('inf')
        elif n[0] - 1 in steps:
            loss = loss + (next(self.parameters()) * 0).sum().sqrt()  # finite, with an infinite slope
        return loss, logs

    method.__class__ = type('Broken', (type(method),), dict(forward=forward))
    return method


@both
@pytest.mark.filterwarnings('ignore:step')
@pytest.mark.parametrize('how', ['loss', 'gradient'])
def test_a_step_that_is_not_finite_is_skipped(how, kind, tmp_path):
    "As if that step had not been: weights, moments and statistics are those of before"
    method, lines = broken(kind, how, 2, 5), []
    with pytest.warns(UserWarning, match='step 2 is skipped'):
        state = train(method, tmp_path, MetricsLogger(lines.append))
    assert state.skipped == 2 and [l['step'] for l in lines if l.get('skipped')] == [2, 5]
    assert [l['step'] for l in lines if 'loss' in l] == [0, 1, 3, 4, 6, 7]
    assert all(v.isfinite().all() for v in method.state_dict().values())
    if hasattr(method, 'sigreg'):
        assert method.sigreg.step == 8 and method.sigreg.check is None
    one = broken(kind, how, 0)
    with pytest.warns(UserWarning):
        train(one, None, TimeLimit(0.0))
    for (k, a), b in zip(one.state_dict().items(), fresh(kind).state_dict().values()):
        assert k.endswith('extra_state') or torch.equal(a, b), k


def test_many_in_a_row_stop_and_carry_the_checkpoint(tmp_path):
    with (
        pytest.warns(UserWarning),
        pytest.raises(FloatingPointError, match='step 7: .*5 steps in a row') as e,
    ):
        train(broken('lejepa', 'loss', *range(3, 8)), tmp_path)
    assert '\n' not in str(e.value) and last(tmp_path) == 6
    assert e.value.last_checkpoint.name.startswith('step-00000006')
    method = broken('lejepa', 'loss', 0, 1, 3, 4, 6, 7)
    with pytest.warns(UserWarning):
        assert fit(method, stream(data, 32), adamw(method), 8, [NonFiniteGuard(3)]).skipped == 6


def test_without_a_guard_the_loss_speaks(unchecked):
    "SIGReg looks at its values again once the guard is gone"
    method = broken('lejepa', 'loss', 1)
    with pytest.warns(UserWarning):
        fit(method, stream(data, 32), adamw(method), 2, [NonFiniteGuard()])
    with pytest.raises(ValueError, match='finite'):
        method.sigreg(torch.full((2, 8, 4), math.nan))


@pytest.fixture
def files(tmp_path):
    from PIL import Image
    from small import Files

    (tmp_path / 'images').mkdir()
    paths = [str(tmp_path / f'images/{i}.png') for i in range(70)]
    for i, p in enumerate(paths):
        Image.fromarray(data.pixels[i, 0].numpy()).convert('RGB').save(p)
    return Files(paths, size=32)


def test_a_disk_that_vanishes(files, tmp_path):
    "The error of a run carries the last good weights"

    def gone():
        for p in files.paths:
            Path(p).unlink()

    with pytest.raises(ValueError, match='none of the 8 images.*images') as e:
        train(fresh('color'), tmp_path / 'run', Acts(4, gone), every=2, images=files, batch=8)
    assert '\n' not in str(e.value) and e.value.last_checkpoint.name.startswith('step-00000004')


@pytest.mark.parametrize('on_full', ['stop', 'go on'])
def test_full_disk(on_full, tmp_path):
    resource = pytest.importorskip('resource')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    fill = Acts(3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard)))
    try:
        if on_full == 'stop':
            with pytest.raises(OSError, match='a checkpoint could not be written') as e:
                train(fresh(), tmp_path, fill)
            assert '\n' not in str(e.value) and e.value.last_checkpoint.name.startswith('step-00000003')
        else:
            with pytest.warns(UserWarning, match='could not be written.*going on without'):
                assert train(fresh(), tmp_path, fill, keep=dict(on_full=on_full)).status == 'done'
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert last(tmp_path) == 3
    whole, part = fresh(), fresh()
    train(part, tmp_path)
    train(whole)
    equal(whole, part)


@pytest.mark.parametrize('on_full', ['stop', 'go on'])
def test_a_log_that_cannot_be_written(on_full):
    def write(line):
        raise OSError(28, 'No space left on device')

    logger = MetricsLogger(write, on_full=on_full)
    if on_full == 'stop':
        with pytest.raises(OSError, match='a line of the log could not be written .No space left'):
            train(fresh(), None, logger, steps=2)
    else:
        with pytest.warns(UserWarning, match='going on without it'):
            assert train(fresh(), None, logger, steps=2).status == 'done'


def test_averaged_weights_and_their_resume(tmp_path):
    whole, part, plain = fresh(), fresh(), fresh()
    train(whole, None, Average(0.7))
    train(part, tmp_path, Average(0.7), Acts(4, kill(signal.SIGTERM)))
    part = fresh()
    train(part, tmp_path, Average(0.7))
    equal(whole, part)
    again = fresh()
    train(again, tmp_path, Average(0.7))  # complete already
    equal(whole, again)
    kept = fresh()
    kept.load_state_dict(shown_weights(Checkpoints(tmp_path).load()))
    equal(whole, kept)
    train(plain)
    assert not torch.equal(next(plain.parameters()), next(whole.parameters()))


@both
def test_an_average_is_its_own_recursion(kind):
    "The exponential moving average from the first weights on, step by step"
    method, seen = fresh(kind), []

    class Sees(Callback):
        def on_start(self, state):
            seen.append([p.detach().clone() for p in state.method.parameters()])

        after_step = on_start

    train(method, None, Sees(), Average(0.7), steps=4)
    mean, *later = seen
    for weights in later:
        mean = [m.lerp(w, 1 - 0.7) for m, w in zip(mean, weights)]
    assert all(torch.equal(p, m) for p, m in zip(method.parameters(), mean))


def test_a_resume_without_its_average_begins_with_the_weights(tmp_path):
    train(fresh(), tmp_path, steps=8, every=3)
    method, other = fresh(), fresh()
    train(method, tmp_path, Average(0.5), steps=8)
    train(other)
    equal(method, other)


class Threads(SingleProcess):
    "Two processes that are threads: what `fit` asks of a parallel context, with a barrier under it"

    size = 2

    def __init__(self, rank, board, gate):
        self.rank, self.board, self.gate = rank, board, gate

    def split(self, n):
        return (0, n // 2) if self.rank == 0 else (n // 2, n)

    def mean(self, scalars):
        self.board[self.rank] = {k: float(v) for k, v in scalars.items()}
        self.gate.wait()
        out = {k: sum(b[k] for b in self.board) / 2 for k in scalars}
        self.gate.wait()
        return out

    def any(self, flag):
        return self.mean(dict(flag=float(bool(flag))))['flag'] > 0

    def barrier(self):
        self.gate.wait()


def in_two_threads(work):
    "What a function makes of two parallel contexts"
    board, gate, out = [None, None], threading.Barrier(2, timeout=60), [None, None]

    def one(rank):
        out[rank] = work(Threads(rank, board, gate))

    threads = [threading.Thread(target=one, args=(rank,)) for rank in (0, 1)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return out


def test_processes_decide_together(tmp_path, recwarn):
    "A loss that is infinite on one rank is skipped by both; only one writes; and the restored run is at the same step on both"
    lines = []

    def run(steps, bad, method):
        def work(parallel):
            one = broken('ijepa', 'loss', *(bad if parallel.rank else ()))
            method.append(one)
            return train(one, tmp_path, MetricsLogger(lines.append), steps=steps, parallel=parallel)

        return in_two_threads(work)

    methods = []
    states = run(6, [2], methods)
    assert [s.skipped for s in states] == [1, 1] and [m.share for m in methods] == [1, 1]
    assert [l['step'] for l in lines] == list(range(6)) and [
        l['step'] for l in lines if l.get('skipped')
    ] == [2]
    states = run(8, [], [])
    assert (
        [s.start for s in states] == [6, 6]
        and [l['step'] for l in lines][-2:] == [6, 7]
        and last(tmp_path) == 8
    )


def test_one_process_is_enough_to_ask(tmp_path):
    "A flag of one process stops both after the same step; a batch too small for the microbatches is refused"

    class Asks(Callback):
        def on_start(self, state):
            state.asked['tired'] = False

        def before_step(self, state):
            if state.step == 2 and state.parallel.rank == 1:
                state.asked['tired'] = True

    states = in_two_threads(lambda p: train(fresh('ijepa'), None, Asks(), parallel=p))
    assert [(s.status, s.step) for s in states] == [('tired', 3)] * 2
    with pytest.raises(ValueError, match='batch of 4 is too small for 2 processes'):
        train(fresh('ijepa'), None, batch=4, accumulate=3, parallel=Threads(0, None, None))


def test_processes_that_find_different_checkpoints_say_so(tmp_path, unchecked):
    train(fresh('ijepa'), tmp_path / '0')
    said = []

    def work(parallel):
        try:
            train(fresh('ijepa'), tmp_path / str(parallel.rank), parallel=parallel)
        except ValueError as e:
            said.append(str(e))

    in_two_threads(work)
    assert len(said) == 2 and all('different checkpoints' in s for s in said)


@both
def test_bfloat16_resumes_exactly_too(kind, tmp_path):
    whole, part, again = fresh(kind), fresh(kind), fresh(kind)
    train(whole, precision='bfloat16', steps=4)
    train(part, tmp_path, TimeLimit(0.0), precision='bfloat16', steps=4)
    train(again, tmp_path, precision='bfloat16', steps=4)
    equal(whole, again)


@both
@pytest.mark.slow
def test_compiled(kind):
    "The same losses to rounding; what comes after the run is not compiled, and has the same names"
    eager, compiled = fresh(kind), fresh(kind)
    names = list(eager.state_dict())
    train(eager, steps=3)
    train(compiled, None, Compile(), HealthWatch(data.pixels[:64], 2), steps=3)
    for (k, a), b in zip(eager.state_dict().items(), compiled.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2, msg=k)
    assert list(compiled.state_dict()) == names and not any(m._compiled_call_impl for m in compiled.modules())


def test_compile_needs_a_compiler(monkeypatch, unchecked):
    monkeypatch.setenv('PATH', '')
    monkeypatch.delenv('CXX', raising=False)
    with pytest.raises(ValueError, match='C\\+\\+ compiler'):
        train(fresh(), None, Compile())


class Sharded(SingleProcess):
    "A context of one process that keeps its parts in a folder of its own"

    sharded = True

    def save(self, path, method, opt, extra):
        path.mkdir(exist_ok=True)
        torch.save(dict(m=method.state_dict(), o=opt.state_dict()), path / 'part.pt')
        return digest(path / 'part.pt')

    def load(self, path, method, opt, saved):
        if digest(path / 'part.pt') != saved:
            raise ValueError(f'{path} is damaged')
        parts = torch.load(path / 'part.pt', weights_only=True)
        method.load_state_dict(parts['m'])
        opt.load_state_dict(parts['o'])


def test_shards(tmp_path, unchecked):
    "The file points to the parts, both are rotated together, and a bit that flips in a part sends it to the checkpoint before"
    whole, part = fresh(), fresh()
    train(whole, tmp_path, parallel=Sharded())
    folders = sorted(tmp_path.glob('shards-*'))
    assert [int(p.name[7:]) for p in folders] == [s for s, _ in Checkpoints(tmp_path).files()]
    b = bytearray((folders[-1] / 'part.pt').read_bytes())
    b[len(b) // 2] ^= 1
    (folders[-1] / 'part.pt').write_bytes(bytes(b))
    with pytest.warns(UserWarning, match='shards-00000008 is damaged.*going on from step 6'):
        assert train(part, tmp_path, parallel=Sharded()).start == 6
    equal(whole, part)
    with pytest.raises(ValueError, match='saved in shards'):
        train(fresh(), tmp_path)
    for p in tmp_path.glob('shards-*/part.pt'):
        p.write_bytes(b'bad')
    with pytest.raises(Damaged, match='can be read'):
        train(fresh(), tmp_path, parallel=Sharded())
    with pytest.raises(ValueError, match='average'):
        train(fresh(), None, Average(0.9), parallel=Sharded())


def test_the_best_by_loss_or_by_an_online_probe(tmp_path):
    "The lowest mean loss since the last checkpoint; with a probe, the best accuracy"
    lines = []
    train(fresh(), tmp_path / 'loss', MetricsLogger(lines.append), steps=9)
    losses = [l['loss'] for l in lines]
    means = {n: -sum(losses[n - 3 : n]) / 3 for n in (3, 6, 9)}
    step, score = Checkpoints(tmp_path / 'loss').load()['best']
    assert step == max(means, key=means.get) and score == pytest.approx(means[step])
    look = OnlineProbe(lambda method, step: dict(knn={2: 0.4, 5: 0.9, 8: 0.6}[step]), 3)
    train(fresh(), tmp_path / 'knn', look, steps=9)
    assert list(Checkpoints(tmp_path / 'knn').load()['best']) == [6, 0.9]


def test_watch_speaks_of_a_collapse():
    "Weights that make all features equal: the log has the figures, the warning the words"
    method, lines = fresh('ijepa'), []
    with torch.no_grad():
        method.target.model.norm.weight.zero_()
        method.encoder.norm.weight.zero_()
    watch = HealthWatch(data.pixels[:64], 4)
    with pytest.warns(UserWarning, match='step 3: .*collapsed to a point'):
        fit(method, stream(data, 32), adamw(method, 1e-9), 4, [watch, MetricsLogger(lines.append)])
    assert 'effective_rank' in lines[3] and 'effective_rank' not in lines[2]


def test_watch_is_silent_otherwise(recwarn):
    train(fresh(), None, HealthWatch(data.pixels[:64], 4))
    assert not [w for w in recwarn if 'collaps' in str(w.message)]


def test_a_probe_looks_and_changes_nothing():
    "In evaluation mode, without gradients, at the average; what it draws has no influence"
    one, two, seen = fresh(), fresh(), []

    def look(method, step):
        seen.append((step, method.training, torch.is_grad_enabled(), method is one))
        return dict(chance=torch.rand(1).item())

    train(one, None, OnlineProbe(look, 3))
    assert seen == [(2, False, False, True), (5, False, False, True)]
    train(two)
    equal(one, two)
    train(one, None, Average(0.9), OnlineProbe(look, 8))
    assert seen[-1] == (7, False, False, False)


def decays(**how):
    "The weight decay of 100 steps"
    method = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW([dict(params=[method.weight], weight_decay=0.04)], 1.0)
    parts = [method, (), optimizer, 100, [], 0, SingleProcess(), method, method]
    state, out = TrainState(*parts), []
    for state.step in range(100):
        Schedule(1.0, **how).before_step(state)
        out.append(optimizer.param_groups[0]['weight_decay'])
    return out


def test_weight_decay_rises_as_asked():
    ramp = dict(weight_decay=0.04, final_weight_decay=0.4)
    linear, cosine = decays(decay_shape='linear', **ramp), decays(**ramp)
    assert linear[49] == pytest.approx(0.22) and cosine[49] == pytest.approx(0.22)
    assert linear[-1] == pytest.approx(0.4) and cosine[-1] == pytest.approx(0.4) and cosine[9] < linear[9]
    assert set(decays()) == {0.04}


def test_the_rate_of_each_step_is_the_schedule():
    lines = []
    train(fresh(), None, MetricsLogger(lines.append))
    assert [l['lr'] for l in lines] == [2e-3 * schedule(i, 8) for i in range(8)]


def test_tensorboard_and_the_bar(tmp_path, capsys):
    reader = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    train(fresh(), None, TensorBoard(tmp_path), Progress(), steps=3)
    events = reader.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [e.step for e in events.Scalars('loss')] == [0, 1, 2]
    assert 'images/s' in capsys.readouterr().err

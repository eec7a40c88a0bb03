"The loop alone: its batches, its gradient, its state, its joints"

import multiprocessing, os, signal
from pathlib import Path
import pytest, torch
from jepa_lit.callbacks import MetricsLogger, NonFiniteGuard, TimeLimit
from jepa_lit.training import Callback, SingleProcess, fit, gradients, stream
from small import KINDS, Files, adamw, data, dropping, equal, fresh

both = pytest.mark.parametrize('kind', KINDS)


def take(batches, k):
    it = iter(batches)
    return [next(it) for _ in range(k)]


class EarlyStop(Callback):
    "Ends a run whose loss has not fallen for some steps"

    def __init__(self, patience):
        self.patience, self.best, self.since = patience, float('inf'), 0

    def after_step(self, state):
        self.since = 0 if state.metrics['loss'] < self.best else self.since + 1
        self.best = min(self.best, state.metrics['loss'])
        if self.since >= self.patience:
            state.stop('stopped early')


def test_a_readers_own_callback():
    lines, method = [], fresh()
    callbacks = [EarlyStop(2), MetricsLogger(lines.append)]
    state = fit(method, stream(data, 32), adamw(method, 0.0), 50, callbacks)
    losses = [l['loss'] for l in lines]
    assert state.status == 'stopped early' and state.step == len(losses) < 50
    assert min(losses[-2:]) >= min(losses[:-2])


def test_hooks_are_called_in_order_also_after_an_error():
    class Says(Callback):
        def __init__(self, name, breaks=False):
            self.name, self.breaks = name, breaks

        def after_step(self, state):
            said.append((self.name, state.step))
            if self.breaks:
                raise RuntimeError('the callback breaks')

        def on_end(self, state):
            said.append((self.name, state.status, type(state.error).__name__))

    said, method = [], fresh()
    assert fit(method, stream(data, 32), adamw(method), 1, [Says('a'), Says('b')]).status == 'done'
    assert said == [('a', 1), ('b', 1), ('a', 'done', 'NoneType'), ('b', 'done', 'NoneType')]
    said.clear()
    with pytest.raises(RuntimeError, match='the callback breaks'):
        fit(method, stream(data, 32), adamw(method), 1, [Says('a', True), Says('b')])
    assert said == [('a', 1), ('a', 'failed', 'RuntimeError'), ('b', 'failed', 'RuntimeError')]


def test_what_is_no_hook_is_refused():
    with pytest.raises(TypeError, match='Mine.after_steps is no hook'):
        type('Mine', (Callback,), dict(after_steps=lambda self, state: None))


def test_what_fit_refuses(unchecked):
    method, other = fresh(), fresh()
    with pytest.raises(ValueError, match="parameters that are not the method's"):
        fit(method, stream(data, 32), adamw(other), 1)
    with pytest.raises(TypeError, match='got none at step 2'):
        fit(method, take(stream(data, 32), 2), adamw(method), 3)
    with pytest.raises(TypeError, match='got tuple at step 0'):
        fit(method, [(data.pixels[:4], data.labels[:4])], adamw(method), 1)
    with pytest.raises(ValueError, match='a batch of 1 to 1438.* got 2000'):
        stream(data, 2000)


def test_batches_may_be_any_iterable():
    one, two = fresh(), fresh()
    fit(one, stream(data, 32), adamw(one), 3)
    fit(two, take(stream(data, 32), 3), adamw(two), 3)
    equal(one, two)


@both
def test_a_state_goes_on_in_a_fresh_loop(kind):
    "With dropout, which draws from the global generators; and the caller's numbers are left alone"
    kept = []

    class Keeps(Callback):
        def on_start(self, state):
            if kept:
                state.load_state_dict(kept[0])

        def after_step(self, state):
            if state.step == 3 and not kept:
                kept.append(pickled(state.state_dict()))

    def run(method, *callbacks):
        return fit(method, stream(data, 32), adamw(method), 6, callbacks)

    whole, part = dropping(kind), dropping(kind)
    user = torch.get_rng_state()
    run(whole, Keeps())
    assert torch.equal(user, torch.get_rng_state())
    torch.manual_seed(99)
    assert run(part, Keeps()).start == 3
    equal(whole, part)
    plain = fresh(kind)
    run(plain)
    assert not torch.equal(next(plain.parameters()), next(whole.parameters()))


def pickled(state):
    from jepa_lit.checkpoints import snapshot

    return snapshot(state)


@pytest.fixture
def files(tmp_path):
    from PIL import Image

    (tmp_path / 'images').mkdir()
    paths = [str(tmp_path / f'images/{i}.png') for i in range(70)]
    for i, p in enumerate(paths):
        Image.fromarray(data.pixels[i, 0].numpy()).convert('RGB').save(p)
    return Files(paths, size=32)


@pytest.mark.parametrize('workers', [0, 2])
def test_files_that_vanish(workers, files):
    whole = iter(stream(files, 32, workers=workers))
    source = iter(stream(files, 32, workers=workers))
    a = [next(whole) for _ in range(4)]
    for p in files.paths[::7]:
        os.unlink(p)
    Path(files.paths[1]).write_bytes(b'no image')
    with pytest.warns(UserWarning, match='another image of its batch') as said:
        b = [next(source) for _ in range(4)]
    assert len(said) == 1 and any(p in str(said[0].message) for p in files.paths)  # once, at the first
    assert [x.shape for x in b] == [x.shape for x in a] and 0 < len(files.skipped) <= 11
    good = {x.numpy().tobytes() for x in torch.cat(a)}
    assert all(x.numpy().tobytes() in good for x in torch.cat(b))
    for p in files.paths:
        Path(p).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=f'none of the 32 images.*{Path(files.paths[0]).parent}'):
        [next(source) for _ in range(9)]
    with pytest.raises(ValueError, match=f'none of the 32 images.*{Path(files.paths[0]).parent}'):
        take(stream(files, 32, workers=workers), 1)


class Kills(Callback):
    "Kills a worker of the loader after the second step"

    def after_step(self, state):
        if state.step == 2:
            pid = multiprocessing.active_children()[-1].pid
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet reaped


def test_a_worker_is_killed_during_training(files):
    "The run goes on, to the same weights; six batches are read by the time of the kill, so more are asked for"
    whole, part = fresh('color'), fresh('color')
    fit(whole, stream(files, 8, workers=2), adamw(whole), 12)
    with pytest.warns(UserWarning, match='worker of the loader died'):
        fit(part, stream(files, 8, workers=2), adamw(part), 12, [Kills()])
    equal(whole, part)


def test_accumulation(unchecked):
    "The same weights to rounding for I-JEPA; refused by LeJEPA, with the reason"
    whole, parts = fresh('ijepa'), fresh('ijepa')
    fit(whole, stream(data, 32), adamw(whole), 2)
    fit(parts, stream(data, 32), adamw(parts), 2, accumulate=3)
    for (k, a), b in zip(whole.state_dict().items(), parts.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4, msg=k)
    method = fresh()
    with pytest.raises(ValueError, match='SIGReg.*got 2 pieces'):
        fit(method, stream(data, 32), adamw(method), 2, accumulate=2)


def test_clipping():
    method = fresh()
    batch, optimizer = method.prepare(data.pixels[:32]), adamw(method)
    loss, logs = gradients(method, batch, optimizer, clip=1e-3)
    norms = torch.stack([p.grad.norm() for p in method.parameters()])
    assert logs['grad_norm'] > 1e-3 and norms.norm().item() == pytest.approx(1e-3, rel=1e-4)


def test_one_transfer_of_figures_a_step():
    "Loss, logs and flags of a step are fetched together"

    class Counts(SingleProcess):
        means = 0

        def mean(self, scalars):
            self.means += 1
            return super().mean(scalars)

    method, counts = fresh(), Counts()
    fit(method, stream(data, 32), adamw(method), 4, [NonFiniteGuard(), TimeLimit(60)], parallel=counts)
    assert counts.means == 4


def two_processes(folder):
    "In each of two: runs that were left alone, and runs that were stopped after the first step, in other global states; final weights, losses, and the first draws of a step"
    from jepa_lit.callbacks import Checkpoint
    from jepa_lit.checkpoints import Checkpoints
    from jepa_lit.parallel import ParallelContext

    parallel, out = ParallelContext(), {}
    for kind in KINDS:
        draws = []

        def left(name, *more):
            method, losses = dropping(kind, 0.2), []
            prepare = method.prepare

            def seen(*a, **k):
                draws.append((name, torch.random.get_rng_state().sum().item()))
                return prepare(*a, **k)

            method.prepare = seen
            store = Checkpoints(Path(folder) / f'{kind}-{name}')
            callbacks = [Checkpoint(store), *more, MetricsLogger(lambda line: losses.append(line['loss']))]
            model = parallel.wrap(method)
            state = fit(method, stream(data, 8), adamw(method), 4, callbacks, parallel=parallel)
            weights = {k: v for k, v in method.state_dict().items() if torch.is_tensor(v)}
            return state.start, state.step, weights, losses

        torch.manual_seed(1 + parallel.rank)
        whole = left('whole')
        first = left('part', TimeLimit(0.0))
        torch.manual_seed(99 - parallel.rank)
        user = torch.get_rng_state()
        out[kind] = whole, first, left('part'), draws, torch.equal(user, torch.get_rng_state())
    return out


def test_two_processes_with_dropout_resume_exactly(tmp_path):
    "What each process drops is a function of (seed, step, process): no process's generators need to be kept"
    from jepa_lit.launch import launch

    one, two = launch(two_processes, 2, str(tmp_path))
    for kind in KINDS:
        (whole, first, second, draws, mine), (other, *_, others, _) = one[kind], two[kind]
        assert (whole[:2], first[:2], second[:2]) == ((0, 4), (0, 1), (1, 4)) and mine and two[kind][-1]
        for k, v in whole[2].items():
            assert torch.equal(v, second[2][k]) and torch.equal(v, two[kind][2][2][k]), k
        assert whole[3] == first[3] + second[3]
        drawn = [[n for name, n in d if name == 'whole'] for d in (draws, others)]
        assert [n for name, n in draws if name == 'part'] == drawn[0]
        assert len(set(sum(drawn, []))) == 8  # another for each step and process
    plain = fresh()
    fit(plain, stream(data, 8), adamw(plain), 4)
    stem = 'backbone.stem.0.weight'
    assert not torch.allclose(plain.state_dict()[stem], one['lejepa'][0][2][stem], atol=1e-4)

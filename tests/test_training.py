"Runs that are stopped, damaged, foreign or hostile"

import os, pickle, signal
from dataclasses import replace
from pathlib import Path
import pytest, torch
from safetensors.torch import save_file
from jepa_lit.checkpoints import write_checkpoint
from jepa_lit.datasets import load, channel_statistics
from jepa_lit.files import Files
from jepa_lit.recipes import build, recipe
from jepa_lit.runs import Run, load_model, load_run, save_model
from jepa_lit.oldloop import SingleProcess, fit, stream

small = recipe(
    'digits',
    widths=(8, 16),
    hidden=32,
    batch=32,
    global_views=2,
    slices=16,
    steps=8,
    precision='float32',
    checkpoint_every=3,
)
ijepa = recipe(
    'digits',
    method='ijepa',
    patch=8,
    width=16,
    depth=1,
    heads=2,
    predictor_width=8,
    predictor_depth=1,
    batch=32,
    steps=8,
    precision='float32',
    checkpoint_every=3,
    watch_every=4,
    final_weight_decay=0.4,
)
both = pytest.mark.parametrize('made', [small, ijepa], ids=['lejepa', 'ijepa'])
data = load('digits').train


def fresh(r=small):
    return build(r, 32, *channel_statistics(data))


def last(run):
    return run.checkpoints.load()['step']


def equal(a, b):
    for (k, x), y in zip(a.state_dict().items(), b.state_dict().values()):
        assert torch.equal(x, y), k


def after(step, act):
    "A probe that does something after a step"
    return lambda method, i: (act() or {}) if i == step else {}


@pytest.mark.parametrize(
    'number, status, made',
    [
        (signal.SIGINT, 'interrupted', small),
        (signal.SIGTERM, 'signalled', ijepa),
        (signal.SIGUSR1, 'signalled', small),
    ],
    ids=['SIGINT', 'SIGTERM', 'SIGUSR1'],
)
def test_signals_save_and_the_resume_is_exact(number, status, made, tmp_path):
    run, whole = Run.create(tmp_path / 'run', made), fresh(made)
    made = replace(made, probe_every=1, watch_every=0)
    result = fit(
        fresh(made), data, made, run, progress=False, probe=after(1, lambda: os.kill(os.getpid(), number))
    )
    assert result['status'] == status and result['step'] == last(run) == 3
    part = fresh(made)
    result = fit(part, data, made, Run.open(tmp_path / 'run'), progress=False)
    fit(whole, data, made, progress=False)
    assert (
        result['started_at'] == 3
        and result['status'] == 'done'
        and [l['step'] for l in run.lines()] == list(range(8))
    )
    equal(whole, part)
    assert (
        fit(part, data, made, Run.open(tmp_path / 'run'), progress=False)['step'] == 8
    )  # there is nothing left to do


def test_time_limit_and_second_interrupt(tmp_path):
    run = Run.create(tmp_path / 'b', small)
    assert (
        fit(fresh(), data, small, run, minutes=0.0, progress=False)['status'] == 'stopped by the time limit'
        and last(run) == 1
    )
    assert fit(fresh(), data, replace(small, steps=1), minutes=0.0, progress=False)['status'] == 'done'

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with pytest.raises(KeyboardInterrupt):
        fit(fresh(), data, replace(small, probe_every=1), run, progress=False, probe=after(3, twice))
    assert handlers == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    assert (
        last(run) == 3 and fit(fresh(), data, small, run, progress=False)['started_at'] == 3
    )  # the lock is free, the checkpoint whole


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize('damage', ['latest', 'all', 'gone', 'other', 'batch', 'steps', 'foreign'])
def test_bad_checkpoint(damage, tmp_path, unchecked):
    run, made = Run.create(tmp_path / 'run', small), small
    fit(fresh(), data, small, run, progress=False)
    files = [p for _, p in run.checkpoints.files()]
    if damage == 'latest':
        files[-1].write_bytes(files[-1].read_bytes()[:-7])
        part, whole = fresh(), fresh()
        with pytest.warns(UserWarning, match='damaged.*going on from step 6'):
            assert fit(part, data, small, run, progress=False)['started_at'] == 6
        fit(whole, data, small, progress=False)
        return equal(whole, part)
    for p in files if damage in ('all', 'gone') else ():
        p.write_bytes(b'') if damage == 'all' else p.unlink()
    made = replace(
        small, **dict(other=dict(widths=(8, 24)), batch=dict(batch=16), steps=dict(steps=5)).get(damage, {})
    )
    if damage == 'foreign':
        write_checkpoint(run.checkpoints.folder, dict(step=8, weights=torch.zeros(2)), 8)
        files[-1].unlink()
    said = dict(
        all='can be read',
        gone='checkpoints are gone',
        other='does not fit this recipe',
        batch='batches of 32',
        steps='at step 8 already',
        foreign='does not fit this recipe',
    )[damage]
    with pytest.raises(ValueError, match=said) as e:
        fit(fresh(made), data, made, run, progress=False)
    assert '\n' not in str(e.value) and len(run.lines()) == 8


def test_no_checkpoint_yet(tmp_path):
    "Killed before the first one: it starts again, and says so"
    run = Run.create(tmp_path / 'run', small)
    run.log(dict(step=0, loss=1.0))
    run.close()
    with pytest.warns(UserWarning, match='starting again at step 0'):
        fit(fresh(), data, replace(small, steps=2), run, progress=False)
    assert [l['step'] for l in run.lines()] == [0, 1]


def test_second_run_in_a_folder_is_refused(tmp_path):
    "By a process of its own"
    import multiprocessing

    run, fork = Run.create(tmp_path / 'run', small), multiprocessing.get_context('fork')
    queue = fork.Queue()
    with run.locked():
        p = fork.Process(target=_alone, args=(tmp_path / 'run', queue))
        p.start()
        said = queue.get(timeout=60)
        p.join()
    assert 'is in use by process' in said and '\n' not in said
    with run.locked():
        fit(fresh(), data, replace(small, steps=2), run, progress=False)  # whoever holds it may train


def _alone(path, queue):
    from jepa_lit.bench import _held

    _held.clear()  # a process that was started, not forked
    try:
        with Run.open(path).locked():
            queue.put('nobody objected')
    except ValueError as e:
        queue.put(str(e))


def broken(made, how, *steps):
    "A method whose loss or gradient is not finite at some steps"
    method, real, n = fresh(made), type(fresh(made)).forward, [0]

    def forward(self, batch):
        loss, logs = real(self, batch)
        n[0] += 1
        if n[0] - 1 not in steps:
            return loss, logs
        if how == 'loss':
            return loss * float('inf'), logs
        return loss + (
            (next(self.parameters()) * 0).sum().sqrt() if how == 'gradient' else 0
        ), logs  # finite, with an infinite slope

    method.__class__ = type('Broken', (type(method),), dict(forward=forward))
    return method


@both
@pytest.mark.filterwarnings('ignore:step')
@pytest.mark.parametrize('how', ['loss', 'gradient'])
def test_a_step_that_is_not_finite_is_skipped(how, made, tmp_path):
    "As if that step had not been: weights, moments and statistics are those of before; and it is so too after a resume"
    run, method = Run.create(tmp_path / 'run', made), broken(made, how, 2, 5)
    made = replace(made, watch_every=0)
    with pytest.warns(UserWarning, match='step 2 is skipped'):
        result = fit(method, data, made, run, progress=False)
    assert (
        result['skipped'] == 2
        and [l['step'] for l in run.lines()] == [0, 1, 3, 4, 6, 7]
        and all(v.isfinite().all() for v in method.state_dict().values())
    )
    if hasattr(method, 'sigreg'):
        assert method.sigreg.step == 8 and method.sigreg.check is None
    one = broken(made, how, 0)
    with pytest.warns(UserWarning):
        fit(one, data, made, minutes=0.0, progress=False)
    for (k, a), b in zip(one.state_dict().items(), fresh(made).state_dict().values()):
        assert k.endswith('extra_state') or torch.equal(a, b), k


def test_many_in_a_row_stop_and_name_the_checkpoint(tmp_path):
    run = Run.create(tmp_path / 'run', small)
    with (
        pytest.warns(UserWarning),
        pytest.raises(FloatingPointError, match='step 7: .*5 steps in a row.*step-00000006') as e,
    ):
        fit(broken(small, 'loss', *range(3, 8)), data, small, run, progress=False)
    assert '\n' not in str(e.value) and last(run) == 6
    with pytest.warns(UserWarning):
        assert (
            fit(broken(small, 'loss', 0, 1, 3, 4, 6, 7), data, replace(small, max_skipped=3), progress=False)[
                'skipped'
            ]
            == 6
        )


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
    whole, source = stream(files, 32, workers=workers), stream(files, 32, workers=workers)
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
        next(stream(files, 32, workers=workers))


def test_a_disk_that_vanishes(files, tmp_path):
    "The error of a run tells where the weights are, and how to go on"

    def gone():
        for p in files.paths:
            Path(p).unlink()

    made = replace(small, batch=8, checkpoint_every=2, watch_every=0, probe_every=1)
    run = Run.create(tmp_path / 'a run', made)
    with pytest.raises(
        ValueError,
        match="images.*the last good checkpoint is .*step-00000004.*go on with: jepa_lit_train --resume '.*a run'",
    ) as e:
        fit(
            build(made, 32, *channel_statistics(files)),
            files,
            made,
            run,
            progress=False,
            probe=after(4, gone),
        )
    assert '\n' not in str(e.value)


def test_a_worker_is_killed_during_training(files):
    "The run goes on, to the same weights"
    import multiprocessing

    def kill():
        pid = multiprocessing.active_children()[-1].pid
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet reaped

    made = replace(small, workers=2, steps=6, batch=8, probe_every=1)
    whole, part = [build(made, 32, *channel_statistics(files)) for _ in range(2)]
    fit(whole, files, made, progress=False)
    with pytest.warns(UserWarning, match='worker of the loader died'):
        fit(part, files, made, progress=False, probe=after(1, kill))
    equal(whole, part)


@pytest.mark.parametrize('on_full', ['stop', 'go on'])
def test_full_disk(on_full, tmp_path):
    import resource

    run, made = Run.create(tmp_path / 'run', small), replace(small, on_full=on_full)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))

    try:
        how = dict(progress=False, probe=after(3, fill))
        if on_full == 'stop':
            with pytest.raises(OSError, match='could not be written.*step-00000003') as e:
                fit(fresh(), data, replace(made, probe_every=1), run, **how)
            assert '\n' not in str(e.value)
        else:
            with pytest.warns(UserWarning, match='could not be written.*going on without'):
                assert fit(fresh(), data, replace(made, probe_every=1), run, **how)['status'] == 'done'
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert last(run) == 3
    whole, part = fresh(), fresh()
    fit(part, data, small, run, progress=False)
    fit(whole, data, small, progress=False)
    equal(whole, part)


def test_averaged_weights_and_their_resume(tmp_path):
    made = replace(small, average=0.7)
    whole, part, run = fresh(), fresh(), Run.create(tmp_path / 'run', made)
    fit(whole, data, made, progress=False)
    fit(
        part,
        data,
        replace(made, probe_every=1),
        run,
        progress=False,
        probe=after(4, lambda: os.kill(os.getpid(), signal.SIGTERM)),
    )
    part = fresh()
    fit(part, data, made, run, progress=False)
    equal(whole, part)
    again = fresh()
    fit(again, data, made, run, progress=False)
    equal(whole, again)
    plain = fresh()
    fit(plain, data, small, progress=False)
    assert not torch.equal(plain.backbone.stem[0].weight, whole.backbone.stem[0].weight)


class ParallelContext:
    "Two processes that are threads: what `fit` asks of a team, with a barrier under it"

    def __init__(self, rank, board, gate):
        self.rank, self.size, self.sharded, self.board, self.gate = rank, 2, False, board, gate

    def split(self, n):
        return (0, n // 2) if self.rank == 0 else (n // 2, n)

    def wrap(self, method):
        return method

    def mean(self, figures):
        self.board[self.rank] = {k: float(v) for k, v in figures.items()}
        self.gate.wait()
        out = {k: sum(b[k] for b in self.board) / 2 for k in figures}
        self.gate.wait()
        return out

    def any(self, flag):
        return self.mean(dict(flag=float(flag)))['flag'] > 0

    def barrier(self):
        self.gate.wait()


def test_a_team_decides_together(tmp_path, recwarn):
    "A loss that is infinite on one rank is skipped by both; only one writes; and the restored run is at the same step on both"
    import threading

    def both_ranks(steps, bad):
        board, gate, out = [None, None], threading.Barrier(2, timeout=60), [None, None]
        methods = [broken(ijepa, 'loss', *(bad if rank else ())) for rank in (0, 1)]

        def work(rank):
            out[rank] = fit(
                methods[rank],
                data,
                replace(ijepa, watch_every=0, steps=steps),
                Run.open(tmp_path / 'run'),
                progress=False,
                team=ParallelContext(rank, board, gate),
            )

        threads = [threading.Thread(target=work, args=(r,)) for r in (0, 1)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        return methods, out

    run = Run.create(tmp_path / 'run', ijepa)
    (one, two), out = both_ranks(6, [2])
    assert (
        [o['skipped'] for o in out] == [1, 1]
        and one.share == two.share == 1
        and [l['step'] for l in run.lines()] == [0, 1, 3, 4, 5]
    )
    (one, two), out = both_ranks(8, [])
    assert (
        [o['started_at'] for o in out] == [6, 6]
        and [l['step'] for l in run.lines()][-2:] == [6, 7]
        and last(run) == 8
    )


def dropping(made):
    "A method with a user's dropout, whose numbers come from the global generators"
    m = fresh(made)
    (m.backbone if made.method == 'lejepa' else m.encoder).register_forward_hook(
        lambda module, given, out: torch.nn.functional.dropout(out, 0.2, module.training)
    )
    return m


def two_processes(folder):
    "In each of two: runs that were left alone, and runs that were stopped after the first step, in other global states; final weights, figures, and the first draws of a step"
    from jepa_lit.parallel import ParallelContext

    team, out = ParallelContext(), {}
    for made in (replace(small, batch=8, steps=4), replace(ijepa, batch=8, steps=4)):
        draws = []

        def left(name, keep=None, **how):
            m, run = dropping(made), Run(Path(folder) / f'{made.method}-{name}')
            if not team.rank and not Run.exists(run.path):
                Run.create(run.path, made)
            team.barrier()
            prepare = m.prepare

            def seen(*a, **k):
                draws.append((name, torch.random.get_rng_state().sum().item()))
                return prepare(*a, **k)

            m.prepare = seen
            said = fit(m, data, made, run, progress=False, team=team, **how)
            return (
                said['started_at'],
                said['step'],
                {k: v for k, v in m.state_dict().items() if torch.is_tensor(v)},
                run.lines(),
            )

        torch.manual_seed(1 + team.rank)
        whole = left('whole')
        first = left('part', minutes=0.0)
        torch.manual_seed(99 - team.rank)
        user = torch.get_rng_state()
        out[made.method] = whole, first, left('part'), draws, torch.equal(user, torch.get_rng_state())
    return out


def test_two_processes_with_dropout_resume_exactly(tmp_path):
    "What each process drops is a function of (seed, step, process): no process's generators need to be kept"
    from jepa_lit.launch import launch

    one, two = launch(two_processes, 2, str(tmp_path))
    for method in ('lejepa', 'ijepa'):
        (whole, first, second, draws, mine), (other, *_, others, _) = one[method], two[method]
        assert (whole[:2], first[:2], second[:2]) == ((0, 4), (0, 1), (1, 4)) and mine and two[method][-1]
        for k, v in whole[2].items():
            assert torch.equal(v, second[2][k]) and torch.equal(v, two[method][2][2][k]), k
        assert [l['loss'] for l in whole[3]] == [l['loss'] for l in second[3]]
        drawn = [[n for name, n in d if name == 'whole'] for d in (draws, others)]
        assert [n for name, n in draws if name == 'part'] == drawn[0] and len(
            set(sum(drawn, []))
        ) == 8  # another for each step and process
    plain, made = fresh(), replace(small, batch=8, steps=4)
    fit(plain, data, made, progress=False)
    assert not torch.allclose(
        plain.backbone.stem[0].weight, one['lejepa'][0][2]['backbone.stem.0.weight'], atol=1e-4
    )


def test_other_data_is_said(tmp_path):
    "More images than before: the order of the epoch is another"
    run = Run.create(tmp_path / 'run', small)
    fit(fresh(), data, small, run, minutes=0.0, progress=False)
    with pytest.warns(UserWarning, match='had 1438 images .* has 1400 now'):
        fit(fresh(), data.select(torch.arange(1400)), replace(small, steps=2), run, progress=False)


@both
def test_bfloat16_resumes_exactly_too(made, tmp_path):
    made = replace(made, precision='bfloat16', steps=4)
    whole, part, run = fresh(made), fresh(made), Run.create(tmp_path / 'run', made)
    fit(whole, data, made, progress=False)
    fit(part, data, made, run, minutes=0.0, progress=False)
    part = fresh(made)
    fit(part, data, made, run, progress=False)
    equal(whole, part)


@both
@pytest.mark.slow
def test_compiled(made):
    "The same losses to rounding; what comes after the run is not compiled, and has the same names"
    eager, compiled = fresh(made), fresh(made)
    names = list(eager.state_dict())
    fit(eager, data, replace(made, steps=3), progress=False)
    fit(compiled, data, replace(made, steps=3, compile=True, watch_every=2), progress=False)
    for (k, a), b in zip(eager.state_dict().items(), compiled.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2, msg=k)
    assert list(compiled.state_dict()) == names and not any(m._compiled_call_impl for m in compiled.modules())


def test_compile_needs_a_compiler(monkeypatch, unchecked):
    monkeypatch.setenv('PATH', '')
    monkeypatch.delenv('CXX', raising=False)
    with pytest.raises(ValueError, match='C\\+\\+ compiler'):
        fit(fresh(), data, replace(small, compile=True), progress=False)


class Sharded(SingleProcess):
    "A team of one that keeps its parts in a folder of its own"

    sharded = True

    def save(self, path, method, opt, extra):
        path.mkdir(exist_ok=True)
        torch.save(dict(m=method.state_dict(), o=opt.state_dict()), path / 'part.pt')

    def load(self, path, method, opt):
        try:
            s = torch.load(path / 'part.pt', weights_only=True)
        except Exception as e:
            raise ValueError(f'{path} is damaged') from None
        method.load_state_dict(s['m'])
        opt.load_state_dict(s['o'])


def test_shards(tmp_path, unchecked):
    "The file points to the parts, both are rotated together, and parts that cannot be read send it to the checkpoint before"
    run, whole, part = Run.create(tmp_path / 'run', small), fresh(), fresh()
    fit(whole, data, small, run, progress=False, team=Sharded())
    folders = sorted(run.checkpoints.folder.glob('shards-*'))
    assert [int(p.name[7:]) for p in folders] == [s for s, _ in run.checkpoints.files()]
    (folders[-1] / 'part.pt').write_bytes(b'bad')
    with pytest.warns(UserWarning, match='damaged; trying the checkpoint before step 8'):
        assert fit(part, data, small, run, progress=False, team=Sharded())['started_at'] == 6
    equal(whole, part)
    with pytest.raises(ValueError, match='saved in shards'):
        fit(fresh(), data, small, run, progress=False)
    for p in run.checkpoints.folder.glob('shards-*/part.pt'):
        p.write_bytes(b'bad')
    with pytest.warns(UserWarning), pytest.raises(ValueError, match='can be read'):
        fit(fresh(), data, small, run, progress=False, team=Sharded())
    with pytest.raises(ValueError, match='average'):
        fit(fresh(), data, replace(small, average=0.9), progress=False, team=Sharded())


@pytest.mark.parametrize('damage', ['truncated', 'empty', 'pickle', 'foreign', 'header', 'missing'])
def test_bad_model(damage, tmp_path, unchecked):
    run = Run.create(tmp_path / 'run', small)
    f = run.path / 'model.safetensors'
    save_model(fresh(), small, f)
    assert load_run(run.path).preprocess.size == 32
    if damage == 'truncated':
        f.write_bytes(f.read_bytes()[:-500])
    if damage == 'empty':
        f.write_bytes(b'')
    if damage == 'pickle':
        f.write_bytes(pickle.dumps(Hostile(str(tmp_path / 'owned'))))
    if damage == 'foreign':
        save_file({'w': torch.zeros(2)}, f)
    if damage == 'header':
        save_file(
            {'w': torch.zeros(2)},
            f,
            {'jepa_lit': '0', 'recipe': '{"data": "digits", "widths": "wide"}', 'preprocess': 'no'},
        )
    if damage == 'missing':
        f.unlink()
    with pytest.raises((ValueError, FileNotFoundError)) as e:
        load_run(run.path)
    assert str(tmp_path) in str(e.value) and '\n' not in str(e.value) and not (tmp_path / 'owned').exists()


def test_model_file_is_enough(tmp_path):
    method = fresh()
    fit(method, data, replace(small, steps=2), progress=False)
    save_model(method, small, tmp_path / 'm.safetensors')
    back, made = load_model(tmp_path / 'm.safetensors')
    assert made == small
    with torch.no_grad():
        assert torch.equal(back.embed(data.pixels[:4]), method.eval().embed(data.pixels[:4]))


def test_run_folder(tmp_path, unchecked):
    Run.create(tmp_path / 'run', small)
    with pytest.raises(ValueError, match='--overwrite'):
        Run.create(tmp_path / 'run', small)
    Run.create(tmp_path / 'run', replace(small, seed=4), overwrite=True)
    assert Run.open(tmp_path / 'run').recipe.seed == 4
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/thesis.txt').write_text('years of work')
    with pytest.raises(ValueError, match='not a run'):
        Run.create(tmp_path / 'mine', small, overwrite=True)
    assert (tmp_path / 'mine/thesis.txt').exists()
    (tmp_path / 'run/recipe.json').write_text('{')
    with pytest.raises(ValueError, match='JSON'):
        Run.open(tmp_path / 'run').recipe


@both
def test_model_file_alone_gives_the_method_back(made, tmp_path):
    method = fresh(made)
    fit(method, data, replace(made, steps=2), progress=False)
    save_model(method, made, tmp_path / 'model.safetensors')
    again, told = load_model(tmp_path / 'model.safetensors')
    assert told == made and torch.equal(again.embed(data.pixels[:8]), method.eval().embed(data.pixels[:8]))


def test_watch_speaks_of_a_collapse():
    "Weights that make all features equal: the log has the figures, the warning the words"
    method = fresh(ijepa)
    with torch.no_grad():
        method.target.model.norm.weight.zero_()
        method.encoder.norm.weight.zero_()
    with pytest.warns(UserWarning, match='step 3: .*collapsed to a point'):
        fit(method, data, replace(ijepa, steps=4, lr=1e-9), progress=False)


def test_watch_is_silent_otherwise(recwarn):
    fit(fresh(), data, replace(small, watch_every=4), progress=False)
    assert not [w for w in recwarn if 'collaps' in str(w.message)]


def test_accumulation(unchecked):
    "The same weights to rounding for I-JEPA; refused for LeJEPA, with the reason"
    whole, parts = fresh(ijepa), fresh(ijepa)
    fit(whole, data, replace(ijepa, steps=2), progress=False)
    fit(parts, data, replace(ijepa, steps=2, accumulate=3), progress=False)
    for (k, a), b in zip(whole.state_dict().items(), parts.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4, msg=k)
    with pytest.raises(ValueError, match='accumulate=2 .*SIGReg'):
        fit(fresh(), data, replace(small, accumulate=2), progress=False)


@pytest.mark.parametrize(
    'words, said',
    [
        (dict(lamb='.1'), "'lamb' belongs to method lejepa, not to ijepa"),
        (dict(patchh='4'), 'did you mean patch'),
        (dict(momentum='.9'), 'momentum has (two|2) numbers'),
        (dict(momentum='.9,1.2'), r'lies in \[0, 1\]'),
        (dict(masks='blok'), 'did you mean block'),
        (dict(method='jepa'), 'did you mean'),
        (dict(target_scale='a,b'), 'numbers, separated by commas'),
    ],
)
def test_ijepa_recipes_that_are_refused(words, said, unchecked):
    with pytest.raises(ValueError, match=said) as e:
        recipe('digits', **{'method': 'ijepa', **words})
    assert '\n' not in str(e.value)


def test_a_damaged_log_spoils_only_its_lines(tmp_path):
    run = Run.create(tmp_path / 'run', small)
    fit(fresh(), data, replace(small, steps=3), run, progress=False)
    with open(run.path / 'log.jsonl', 'ab') as f:
        f.write(
            b'{"step": 3, "loss": \xff}\n\xff\n[1, 2]\n7\nnull\n{"loss": 1}\n{"step": "4"}\n' + b'[' * 100000
        )
    assert [l['step'] for l in run.lines(skipped=True)] == [0, 1, 2]
    assert fit(fresh(), data, small, run, progress=False)['started_at'] == 3 and [
        l['step'] for l in run.lines()
    ] == list(range(8))


@pytest.mark.parametrize(
    'left, said', [('model.safetensors', 'has a trained model'), ('metrics.json', 'reaches step 8')]
)
def test_a_run_without_log_and_checkpoints_does_not_begin_anew(left, said, tmp_path, unchecked):
    run = Run.create(tmp_path / 'run', small)
    if left == 'metrics.json':
        run.write(left, dict(status='done', step=8))
    else:
        save_model(fresh(), small, run.path / left)
    before = (run.path / left).read_bytes()
    with pytest.raises(ValueError, match=f'{said}, but its checkpoints are gone.*--overwrite') as e:
        fit(fresh(), data, small, run, progress=False)
    assert '\n' not in str(e.value) and (run.path / left).read_bytes() == before


def test_other_records_do_not_hinder_a_start(tmp_path):
    for i, text in enumerate(
        (b'{', b'[]', b'\xff', b'{"step": null}', b'{"step": "x"}', b'{"step": Infinity}')
    ):
        run = Run.create(tmp_path / str(i), small)
        (run.path / 'metrics.json').write_bytes(text)
        assert run.reached() == 0


def test_model_file_has_the_mode_of_the_others(tmp_path):
    old = os.umask(0o027)
    try:
        save_model(fresh(), small, tmp_path / 'model.safetensors')
    finally:
        os.umask(old)
    assert (tmp_path / 'model.safetensors').stat().st_mode & 0o777 == 0o640


def test_errors_of_a_folder_name_it(tmp_path, unchecked, monkeypatch):
    (tmp_path / 'file').write_text('x')
    (tmp_path / 'a run').mkdir()
    (tmp_path / 'a run/x').write_text('x')
    for path, said in (
        (tmp_path / 'file/sub/run', 'file is a file: expected a folder'),
        (tmp_path / 'a run', "--resume '.*a run'"),
    ):
        with pytest.raises(ValueError, match=said):
            Run.create(path, small)

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='new cannot be written .No space left on device.: expected'):
        Run.create(tmp_path / 'new', small)
    with pytest.raises(OSError, match='No space left on device: .*model.safetensors'):
        save_model(fresh(), small, tmp_path / 'model.safetensors')


def test_recipe_of_a_run_with_an_unknown_key(tmp_path, unchecked):
    run = Run.create(tmp_path / 'run', small)
    (run.path / 'recipe.json').write_text('{"data": "digits", "lamda": 1}')
    with pytest.raises(ValueError, match=r"recipe\.json: unknown recipe key 'lamda': did you mean lamb"):
        run.recipe

"A run's folder, its model's file, and what is said where they are damaged, edited, old or somebody else's"

import json, os, pickle, shutil, warnings
from dataclasses import asdict, replace
from pathlib import Path
import pytest, torch
from safetensors.torch import load_file, save_file
from small import data, equal, scale
from jepa_lit.callbacks import Average, Checkpoint, MetricsLogger, Schedule
from jepa_lit.recipes import build, differences, recipe
from jepa_lit.runs import Options, Run, load_model, load_run, machine, read_options, record, save_model
from jepa_lit.training import fit, stream

OLD = Path(__file__).parent / 'old_run'  # two runs made by version 0.1.0
small = recipe(
    'digits',
    backbone=dict(widths=(8, 16)),
    loss=dict(lamb=0.05, hidden=32, out=16, slices=16),
    views=dict(global_views=2),
    run=dict(batch=16, steps=8, precision='float32'),
    lr=2e-3,
)
ijepa = recipe(
    'digits',
    method='ijepa',
    encoder=dict(patch=8, width=16, depth=1, heads=2),
    predictor=dict(width=8, depth=1),
    run=dict(batch=16, steps=8, precision='float32'),
    max_context=None,
)
both = pytest.mark.parametrize('made', [small, ijepa], ids=['lejepa', 'ijepa'])


def fresh(made=small):
    return build(made, 32, *scale)


def train(made, run=None, more=(), steps=None):
    "A short run, in its folder if there is one"
    method = fresh(made)
    callbacks = [Checkpoint(run.checkpoints, run.options.checkpoint_every)] if run else []
    callbacks += [Schedule(made.optim.lr), *more]
    callbacks += [MetricsLogger(run.log, run.truncate)] if run else []
    steps = steps or made.run.steps
    fit(method, stream(data, made.run.batch, 0), made.optim.optimizer(method), steps, callbacks)
    if run:
        run.close()
    return method


def embeddings(method):
    with torch.no_grad():
        return method.eval().embed(data.pixels[:8])


@both
def test_model_file_alone_gives_the_method_back(made, tmp_path):
    method = train(made, steps=2)
    save_model(method, made, tmp_path / 'model.safetensors')
    again, told = load_model(tmp_path / 'model.safetensors')
    assert told == made and torch.equal(embeddings(again), embeddings(method))
    equal(again, method)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, 'w')


@pytest.mark.parametrize(
    'damage',
    ['truncated', 'empty', 'pickle', 'foreign', 'header', 'missing', 'weight', 'recipe', 'scale', 'newer'],
)
def test_bad_model(damage, tmp_path, unchecked):
    run = Run.create(tmp_path / 'run', small)
    f = run.path / 'model.safetensors'
    save_model(fresh(), small, f)
    assert load_run(run.path).preprocess.size == 32
    raw, tensors = f.read_bytes(), load_file(f)
    if damage == 'truncated':
        f.write_bytes(raw[:-500])
    if damage == 'empty':
        f.write_bytes(b'')
    if damage == 'pickle':
        f.write_bytes(pickle.dumps(Hostile(str(tmp_path / 'owned'))))
    if damage == 'foreign':
        save_file({'w': torch.zeros(2)}, f)
    if damage == 'header':
        header = {'jepa_lit': '0', 'recipe': '{"data": "digits", "widths": "wide"}', 'preprocess': 'no'}
        save_file({'w': torch.zeros(2)}, f, header)
    if damage == 'missing':
        f.unlink()
    if damage == 'weight':
        f.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    if damage == 'recipe':
        f.write_bytes(raw.replace(b'lamb\\": 0.05', b'lamb\\": 0.06'))
    if damage == 'scale':
        f.write_bytes(raw.replace(b'size\\": 32', b'size\\": 33'))
    if damage == 'newer':
        save_file(tensors, f, {'jepa_lit': '9', 'format': '3'})
    assert not f.exists() or f.read_bytes() != raw
    with pytest.raises((ValueError, FileNotFoundError)) as e:
        load_run(run.path)
    assert str(tmp_path) in str(e.value) and '\n' not in str(e.value) and not (tmp_path / 'owned').exists()


def test_a_flipped_bit_of_a_model_is_noticed(tmp_path):
    f = tmp_path / 'm.safetensors'
    save_model(fresh(), small, f)
    raw = bytearray(f.read_bytes())
    for place in range(9, len(raw), len(raw) // 40):
        changed = raw.copy()
        changed[place] ^= 4
        f.write_bytes(changed)
        with pytest.raises(ValueError, match='m.safetensors'):
            load_model(f)


def test_model_file_has_the_mode_of_the_others(tmp_path):
    old = os.umask(0o027)
    try:
        save_model(fresh(), small, tmp_path / 'model.safetensors')
    finally:
        os.umask(old)
    assert (tmp_path / 'model.safetensors').stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize('name', ['lejepa', 'ijepa'])
def test_models_of_version_0_1_0(name, tmp_path, unchecked):
    "The same embeddings as the library that made them, to the bit; a resume is refused in one line"
    path = shutil.copytree(OLD / name, tmp_path / name)
    expected = torch.tensor(json.loads((path / 'embeddings.json').read_text()))
    assert torch.equal(embeddings(load_run(path))[:4], expected)
    run = Run.open(path)
    assert run.recipe == load_model(path / 'model.safetensors')[1] and run.recipe.method == name
    assert run.options == Options() and run.lines()
    for act in (run.check_resume, lambda: load_run(path, which='best')):
        with pytest.raises(ValueError, match='made by version 0.1.0') as e:
            act()
        assert '\n' not in str(e.value) and '--' not in str(e.value)


@pytest.mark.parametrize('average', [None, 0.5])
def test_the_best_checkpoint(average, tmp_path, unchecked):
    "The weights of the best step, not of the last; averaged ones where the run averages"
    run = Run.create(tmp_path / 'run', small, Options(checkpoint_every=2))
    more = [Average(average)] if average else []
    method = train(small, run, more)
    step = run.checkpoints.load()['best'][0]
    best = load_run(run.path, which='best')  # before there is a model
    assert best.sigreg.step == step and not best.training and best.preprocess.size == 32
    save_model(method, small, run.path / 'model.safetensors')
    equal(load_run(run.path), method)
    if average and step == 8:
        equal(best, method)
    with pytest.raises(ValueError, match='did you mean best'):
        load_run(run.path, which='bset')


def test_another_best_than_the_last(tmp_path):
    "A later checkpoint that says that an earlier one was the best"
    run = Run.create(tmp_path / 'run', small, Options(checkpoint_every=2, keep_last=1))
    method = train(small, run, steps=4)
    four = {k: v.clone() for k, v in method.state_dict().items()}
    state = run.checkpoints.load()
    assert state['step'] == 4
    last = dict(state, step=8, best=[4, 0.0], method={k: torch.zeros_like(v) for k, v in four.items()})
    run.checkpoints.save(last, 4)
    run.checkpoints.wait()
    assert [s for s, _ in run.checkpoints.files()] == [4, 8]
    best = load_run(run.path, which='best')
    assert all(torch.equal(v, four[k]) for k, v in best.state_dict().items())


def test_no_best_yet(tmp_path):
    run = Run.create(tmp_path / 'run', small)
    with pytest.raises(FileNotFoundError, match='no best checkpoint'):
        load_run(run.path, which='best')
    with pytest.raises(FileNotFoundError, match='no model yet'):
        load_run(run.path)


def test_run_folder(tmp_path, unchecked):
    Run.create(tmp_path / 'run', small)
    with pytest.raises(ValueError, match='exists: expected a new folder'):
        Run.create(tmp_path / 'run', small)
    Run.create(tmp_path / 'run', recipe(small, seed=4), overwrite=True)
    assert Run.open(tmp_path / 'run').recipe.run.seed == 4
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/thesis.txt').write_text('years of work')
    with pytest.raises(ValueError, match='not a run'):
        Run.create(tmp_path / 'mine', small, overwrite=True)
    assert (tmp_path / 'mine/thesis.txt').exists()
    (tmp_path / 'run/recipe.json').write_text('{')
    with pytest.raises(ValueError, match='JSON'):
        Run.open(tmp_path / 'run').recipe


def test_overwriting_deletes_what_a_run_wrote_and_nothing_else(tmp_path):
    run = Run.create(tmp_path / 'run', small, Options(checkpoint_every=4))
    train(small, run)
    (run.path / 'checkpoints/notes.txt').write_text('mine')
    (run.path / 'checkpoints/shards-00000004').mkdir()
    Run.create(run.path, small, overwrite=True)
    left = sorted(p.name for p in run.path.rglob('[!.]*') if p.is_file())
    assert left == ['notes.txt', 'recipe.json'] and not list(run.path.glob('checkpoints/shards-*'))


@pytest.mark.parametrize(
    'edit',
    [('"lamb": 0.05', '"lamb": 0.5'), ('"seed": 0', '"seed": 1'), ('"keep_last": 2', '"keep_last": 3')],
)
def test_an_edited_recipe_is_refused(edit, tmp_path, unchecked):
    run = Run.create(tmp_path / 'run', small)
    f = run.path / 'recipe.json'
    text = f.read_text()
    assert edit[0] in text
    f.write_text(text.replace(*edit))
    for act in (
        lambda: run.recipe,
        lambda: run.options,
        run.check_resume,
        lambda: load_run(run.path, 'best'),
    ):
        with pytest.raises(ValueError, match='was changed since the run wrote it') as e:
            act()
        assert '\n' not in str(e.value) and str(f) in str(e.value)
    f.write_text(json.dumps(json.loads(text)))  # another layout is no other recipe
    assert run.recipe == small and run.options == Options()


def test_a_newer_format_is_refused(tmp_path, unchecked):
    run = Run.create(tmp_path / 'run', small)
    (run.path / 'recipe.json').write_text('{"format": 3}')
    with pytest.raises(ValueError, match='format 3: expected 2'):
        run.recipe


def test_recipe_of_an_old_run_with_an_unknown_key(tmp_path, unchecked):
    run = Run.create(tmp_path / 'run', small)
    (run.path / 'recipe.json').write_text('{"data": "digits", "lamda": 1}')
    with pytest.raises(ValueError, match=r"recipe\.json: unknown recipe key 'lamda': did you mean lamb"):
        run.recipe


def test_options(tmp_path, unchecked):
    run = Run.create(tmp_path / 'run', small, Options(keep_last=3, threads=2))
    assert run.options == Options(keep_last=3, threads=2)
    run.write_recipe(recipe(small, steps=20), replace(run.options, workers=1))
    assert run.recipe.run.steps == 20 and run.options == Options(keep_last=3, threads=2, workers=1)
    f = tmp_path / 'a.toml'
    f.write_text('steps = 3\n[options]\nworkers = 4\non_full = "go on"\n')
    assert read_options(f, workers='2', tensorboard='true') == Options(
        workers=2, on_full='go on', tensorboard=True
    )
    for bad, said in (
        (dict(keep=3), 'did you mean keep_last'),
        (dict(keep_last='0'), 'keep_last=.0.: expected int >= 1'),
        (dict(max_skipped=0), '>= 1'),
        (dict(probe_every=-1), '>= 0'),
        (dict(on_full='go'), 'did you mean go on'),
        (dict(on_full='panic'), 'unknown on_full'),
        (dict(threads=0), '>= 1'),
    ):
        with pytest.raises(ValueError, match=said):
            read_options(**bad)
    f.write_text('[options]\nworker = 4\n')
    with pytest.raises(ValueError, match="a.toml: unknown option 'worker': did you mean workers"):
        read_options(f)
    assert not set(asdict(Options())) & {
        k.split('.')[-1] for k in differences(recipe(), recipe(method='ijepa'))
    }


def test_a_damaged_log_spoils_only_its_lines(tmp_path):
    run = Run.create(tmp_path / 'run', small, Options(checkpoint_every=3))
    train(small, run, steps=3)
    with open(run.path / 'log.jsonl', 'ab') as f:
        f.write(
            b'{"step": 3, "loss": \xff}\n\xff\n[1, 2]\n7\nnull\n{"loss": 1}\n{"step": "4"}\n' + b'[' * 100000
        )
    assert [l['step'] for l in run.lines(skipped=True)] == [0, 1, 2]
    train(small, run)
    assert [l['step'] for l in run.lines()] == list(range(8))


def test_the_log_goes_on_from_a_step(tmp_path):
    run = Run.create(tmp_path / 'run', small)
    for step in range(6):
        run.log(dict(step=step, loss=1.0, **dict(skipped=True) if step == 2 else {}))
    (run.path / '.log.jsonl.7.tmp').write_text('{')
    assert [l['step'] for l in run.lines()] == [0, 1, 3, 4, 5]
    run.truncate(4)
    run.log(dict(step=4, loss=2.0))
    run.close()
    assert [(l['step'], l['loss']) for l in run.lines(skipped=True)][-2:] == [(3, 1.0), (4, 2.0)]
    assert len(run.lines(skipped=True)) == 5 and not list(run.path.glob('.*.tmp'))


@pytest.mark.parametrize(
    'left, said',
    [('model.safetensors', 'it has a model, and no checkpoint'), ('.saved', 'its checkpoints are gone')],
)
def test_a_run_without_log_and_checkpoints_does_not_begin_anew(left, said, tmp_path, unchecked):
    run = Run.create(tmp_path / 'run', small, Options(checkpoint_every=4))
    if left == '.saved':
        train(small, run, steps=4)
        shutil.rmtree(run.checkpoints.folder)
    else:
        save_model(fresh(), small, run.path / left)
    with pytest.raises(ValueError, match=said) as e:
        run.check_resume()
    assert '\n' not in str(e.value) and '--' not in str(e.value)


def test_a_run_that_just_began_may_begin_anew(tmp_path):
    run = Run.create(tmp_path / 'run', small)
    run.check_resume()
    run.log(dict(step=0, loss=1.0))
    with pytest.warns(UserWarning, match='no checkpoint for the 1 steps'):
        run.check_resume()


def test_errors_of_a_folder_name_it(tmp_path, unchecked, monkeypatch):
    (tmp_path / 'file').write_text('x')
    (tmp_path / 'a run').mkdir()
    (tmp_path / 'a run/x').write_text('x')
    for path, said in (
        (tmp_path / 'file/sub/run', 'file is a file: expected a folder'),
        (tmp_path / 'a run', 'a run exists'),
    ):
        with pytest.raises(ValueError, match=said) as e:
            Run.create(path, small)
        assert '--' not in str(e.value)
    with pytest.raises(FileNotFoundError, match='is not a run: expected a folder with recipe.json'):
        Run.open(tmp_path / 'a run')

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='new cannot be written .No space left on device.: expected'):
        Run.create(tmp_path / 'new', small)
    with pytest.raises(OSError, match='No space left on device: .*model.safetensors'):
        save_model(fresh(), small, tmp_path / 'model.safetensors')


def test_an_abandoned_folder_is_no_obstacle(tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/.lock').touch()
    (tmp_path / 'run/.recipe.json.7.tmp').write_text('{')
    assert not Run.exists(tmp_path / 'run')
    Run.create(tmp_path / 'run', small)
    assert Run.exists(tmp_path / 'run')


def test_a_run_in_use_is_not_overwritten(tmp_path, unchecked):
    import subprocess, sys

    run = Run.create(tmp_path / 'run', small)
    code = f"import sys; from jepa_lit.runs import Run\nwith Run({str(run.path)!r}).locked():\n    print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == 'held\n'
        with pytest.raises(ValueError, match='in use'):
            Run.create(run.path, small, overwrite=True)
    finally:
        holder.communicate('')
    Run.create(run.path, small, overwrite=True)


def test_a_run_of_images_in_color_keeps_its_size(tmp_path):
    made = recipe(small, data='cifar10', size=16)
    method = build(made, 16, (0.5,) * 3, (0.25,) * 3)
    save_model(method, made, tmp_path / 'm.safetensors')
    again, told = load_model(tmp_path / 'm.safetensors')
    assert (again.preprocess.size, again.preprocess.channels, told) == (16, 3, made)


def test_record():
    told = record(small, 0.0)
    assert (told['seed'], told['split_seed']) == (0, 0) and told['wall_seconds'] > 0
    assert set(told['versions']) == {'jepa_lit', 'torch', 'torchvision', 'python'}
    assert told['machine']['threads'] == torch.get_num_threads() and json.dumps(told)
    assert not {'seed', 'split_seed'} & set(machine(0.0))


def test_a_flipped_bit_of_any_file_is_announced_or_changes_nothing(tmp_path, unchecked):
    "Of a run's texts, at many places; the model and the checkpoints have tests of their own"
    run = Run.create(tmp_path / 'run', small, Options(checkpoint_every=4))
    train(small, run)
    run.write('metrics.json', dict(status='done', step=8, loss=0.123456))
    acts = {
        'recipe.json': lambda: (run.recipe, run.options),
        'metrics.json': lambda: run.read('metrics.json'),
        'log.jsonl': lambda: run.lines(skipped=True),
    }
    for name, act in acts.items():
        path = run.path / name
        good, expected = path.read_bytes(), act()
        for i in range(0, 8 * len(good), len(good) // 5 + 1):
            bad = bytearray(good)
            bad[i // 8] ^= 1 << i % 8
            path.write_bytes(bad)
            with warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter('always')
                try:
                    assert act() == expected or heard or name == 'metrics.json', (name, i)
                except ValueError as e:
                    assert '\n' not in str(e) and name in str(e)
        path.write_bytes(good)
        assert act() == expected


def test_a_flipped_digit_of_the_log_is_left_out_and_said(tmp_path):
    run = Run.create(tmp_path / 'run', small)
    for step in range(4):
        run.log(dict(step=step, loss=0.5))
    path = run.path / 'log.jsonl'
    path.write_text(path.read_text().replace('"step": 1, "loss": 0.5', '"step": 1, "loss": 0.7'))
    with pytest.warns(UserWarning, match='1 damaged lines are left out'):
        assert [l['step'] for l in run.lines()] == [0, 2, 3]
    with pytest.warns(UserWarning, match='1 of the lines before step 4 are missing'):
        run.truncate(4)
    assert [l['step'] for l in run.lines()] == [0, 2, 3]


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='no pipes')
@pytest.mark.parametrize('name', ['log.jsonl', '.lock', 'recipe.json', 'model.safetensors', 'metrics.json'])
@pytest.mark.parametrize('kind', ['pipe', 'link', 'folder', 'nowhere'])
def test_files_that_are_none(name, kind, tmp_path, unchecked):
    "Nothing hangs, and what a link points to stays as it is"
    run = Run.create(tmp_path / 'run', small, Options(checkpoint_every=4))
    (tmp_path / 'mine').write_text('years of work')
    path = run.path / name
    path.unlink(missing_ok=True)
    if kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'folder':
        path.mkdir()
    else:
        path.symlink_to(tmp_path / ('mine' if kind == 'link' else 'nowhere'))

    def acts():
        yield lambda: train(small, run)
        yield lambda: run.log(dict(step=8))
        yield lambda: Run.open(run.path).recipe
        yield lambda: load_run(run.path)
        yield lambda: run.read('metrics.json')
        yield lambda: save_model(fresh(), small, run.path / 'model.safetensors')
        yield lambda: run.write('metrics.json', {})
        yield lambda: Run.create(run.path, small, overwrite=True)

    for act in acts():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                with run.locked():
                    act()
        except (ValueError, OSError) as e:
            assert '\n' not in str(e)
    run.close()
    assert (tmp_path / 'mine').read_text() == 'years of work' and not (tmp_path / 'nowhere').exists()

"An experiment from Python: what is read, trained, judged and left behind; errors that know no command line"

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from jepa_lit import experiment
from jepa_lit.datasets import load
from jepa_lit.files import Files
from jepa_lit.experiment import evaluate, load_splits, online_probe, resolve, train
from jepa_lit.recipes import recipe
from jepa_lit.runs import Options, Run, load_run
from jepa_lit.training import fit

TINY = dict(steps=6, batch=32, widths=(8, 16), hidden=32, global_views=2, slices=16, precision='float32')


@pytest.fixture(autouse=True)
def aside(tmp_path, monkeypatch, unchecked):
    "Runs and caches in a folder of the test's own"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('JEPA_LIT_CACHE', str(tmp_path / 'cache'))


def tiny(name='digits', **changes):
    return recipe(name, **{**TINY, **changes})


def silent(text):
    pass


class Pixels(torch.nn.Module):
    def embed(self, x):
        return x.flatten(1).float()


def test_online_probe_is_blind_to_the_test_part():
    splits = load_splits(recipe('digits'))
    seen = online_probe(splits.train)(Pixels(), 0)
    assert seen['knn'] > 0.9 and seen['linear'] > 0.7
    assert seen == online_probe(replace(splits, test=None).train)(Pixels(), 0)


def test_online_probe_of_broken_features():
    class Broken(Pixels):
        def embed(self, x):
            return super().embed(x) * float('nan')

    assert online_probe(load_splits(recipe('digits')).train)(Broken(), 0) == {}


def test_online_probe_without_labels():
    data = replace(load('digits').train, labels=None)
    with pytest.warns(UserWarning, match='no labels'):
        assert online_probe(data) is None


def test_online_probe_leaves_no_trace(tmp_path):
    "Named in the log, and without influence on the weights"
    for name, every in (('a', 0), ('b', 3)):
        options = Options(probe_every=every)
        train(tiny(), name, options, progress=False, say=silent, evaluate=False)
    a, b = ((tmp_path / n / 'model.safetensors').read_bytes() for n in 'ab')
    assert a[-2000:] == b[-2000:]
    lines = [line for line in Run.open('b').lines() if 'knn' in line]
    assert [line['step'] for line in lines] == [2, 5]
    assert all(0 <= line['knn'] <= 1 and 0 <= line['linear'] <= 1 for line in lines)


@pytest.fixture
def pictures(tmp_path):
    "A folder of 48 crops of two photographs"
    (tmp_path / 'pictures').mkdir()
    for i in range(48):
        photo = load_sample_image('china.jpg' if i % 2 else 'flower.jpg')
        y, x = divmod(i * 37, 500)
        Image.fromarray(photo[y : y + 60, x : x + 60]).save(tmp_path / f'pictures/{i}.png')
    return str(tmp_path / 'pictures')


def test_images_are_read_once_before_the_first_step(pictures, monkeypatch):
    "Statistics, watch and check share one sample; what follows are the steps' own batches"
    reads, read = [], Files.read
    monkeypatch.setattr(Files, 'read', lambda self, i: reads.append(i) or read(self, i))
    made = tiny('folder', root=pictures, size=32, local_views=0, batch=8)
    splits = load_splits(made, Options(cache_gb=0))
    assert isinstance(splits.train, Files)
    assert sorted(reads) == []
    kwargs = resolve(made, Options(cache_gb=0), splits)
    assert sorted(reads) == list(range(48))
    fit(**{**kwargs, 'steps': 1})
    assert len(reads) == 48 + 8


def test_a_resolved_recipe_is_what_fit_takes(tmp_path):
    made = tiny()
    state = fit(**resolve(made, Options(), load_splits(made)))
    assert state.status == 'done' and state.step == 6
    run = train(made, progress=False, say=silent, evaluate=False)
    assert run.path == Path('runs/digits-lejepa-0')
    saved = torch.cat([p.flatten() for p in load_run(run.path).parameters()])
    assert torch.equal(saved, torch.cat([p.flatten() for p in state.method.parameters()]))


@pytest.mark.parametrize(
    'wrong, expected',
    [
        (lambda: train(tiny(), 'r', minutes=-1.0), 'minutes'),
        (lambda: train(tiny(), 'r', minutes=float('nan')), 'minutes'),
        (lambda: train(tiny(), 'r', shard=True), 'several processes'),
        (lambda: train(tiny(batch=5000), 'r'), 'expected a batch of'),
        (lambda: train(tiny(size=8, stem=4, widths=(8, 8, 8)), 'r'), 'smaller than'),
        (lambda: train(tiny(), 'taken'), 'exists'),
        (lambda: train(tiny(), 'taken', overwrite=True), 'not a run'),
        (lambda: train(tiny(), 'nowhere', resume=True), 'not a run'),
        (lambda: load_splits(recipe('folder', validate=True, root='flat')), 'validate needs labels'),
    ],
)
def test_errors_state_facts(tmp_path, wrong, expected):
    "One line, no flag of a command, and nothing is left behind"
    (tmp_path / 'taken').mkdir()
    (tmp_path / 'taken/mine.txt').write_text('x')
    (tmp_path / 'flat').mkdir()
    for i in range(4):
        Image.new('RGB', (40, 40), (60 * i, 0, 0)).save(tmp_path / f'flat/{i}.png')
    with pytest.raises((ValueError, OSError), match=expected) as said:
        wrong()
    assert '--' not in str(said.value) and 'jepa_lit_' not in str(said.value)
    assert '\n' not in str(said.value)
    assert not (tmp_path / 'r').exists() and (tmp_path / 'taken/mine.txt').exists()


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path, monkeypatch):
    def no_compiler(**kwargs):
        raise ValueError('no compiler')

    monkeypatch.setattr(experiment, 'fit', no_compiler)
    with pytest.raises(ValueError, match='no compiler'):
        train(tiny(), 'r', progress=False, say=silent)
    assert not (tmp_path / 'r').exists()


def test_validation_never_sees_the_test_part():
    whole, held = load_splits(recipe('digits')), load_splits(recipe('digits', validate=True))
    assert len(held.train) + len(held.test) == len(whole.train)
    images = {p.numpy().tobytes() for p in (*held.train.pixels, *held.test.pixels)}
    assert images <= {p.numpy().tobytes() for p in whole.train.pixels}


def test_without_labels_health_stands_for_probes(pictures, tmp_path):
    made = tiny('folder', root=pictures, size=32, local_views=0, batch=8)
    said = []
    run = train(made, 'r', progress=False, say=said.append)
    metrics = json.loads((run.path / 'metrics.json').read_text())
    assert metrics['probes'] == {} and metrics['health']['trained']['effective_rank'] >= 1
    assert 'no probes' in '\n'.join(said) and (run.path / 'gallery.png').exists()


def test_evaluation_keeps_its_rows(monkeypatch):
    monkeypatch.setattr(experiment, 'probe', lambda *parts, **how: dict(knn=experiment.knn(*parts)))
    made = recipe('digits', method='ijepa', encoder=dict(patch=8, width=16, depth=1, heads=2), steps=2)
    splits = load_splits(made)
    small = replace(splits, train=splits.train.select(range(60)), test=splits.test.select(range(40)))
    kwargs = resolve(made, Options(), small)
    found = evaluate(kwargs['method'], made, small)
    rows = ['raw', 'published init', 'untrained', 'trained']
    assert list(found.probes) == [*rows, *(f'{row}, 4x4' for row in rows[1:])]
    assert found.probes['untrained'] == found.probes['trained']  # nothing was trained
    assert found.embeddings.shape == (40, 16) and len(found.images) == 40
    assert evaluate(kwargs['method'], made, small, probes=False).probes == {}


class Died(Exception):
    pass


@pytest.fixture
def part(tmp_path, monkeypatch):
    "A run that died after its fifth step, with checkpoints of steps 2 and 4"
    log = Run.log

    def dies(run, line):
        log(run, line)
        if line['step'] == 4:
            raise Died

    with monkeypatch.context() as patch:
        patch.setattr(Run, 'log', dies)
        with pytest.raises(Died):
            train(tiny(), 'part', Options(checkpoint_every=2), progress=False, say=silent, evaluate=False)
    return Run.open('part')


def go_on(run, made=None, **how):
    "Resume a run; its final weights"
    made = made or run.recipe
    train(made, run.path, run.options, resume=True, progress=False, say=silent, evaluate=False, **how)
    return torch.cat([p.flatten() for p in load_run(run.path).parameters()])


@pytest.mark.parametrize('change', [dict(lr=0.202), dict(global_views=6), dict(batch=16)], ids=str)
def test_another_recipe_is_no_resume(change, part):
    "Edited by hand, digest and all, or given by a program: the checkpoints know what they were made of"
    field, value = next(iter(change.items()))
    part.write_recipe(recipe(part.recipe, **change), part.options)
    with pytest.raises(
        ValueError, match=f'checkpoint of step 4 .* another run: .*{field} was .* and is {value}'
    ) as e:
        go_on(part)
    assert '\n' not in str(e.value) and e.value.key == 'changed'
    with pytest.warns(UserWarning, match=f'is used, though .*{field} was'):
        go_on(part, accept_changes=True)


def test_other_data_are_no_resume_and_other_versions_are_said(part, monkeypatch):
    real = experiment.load

    def one_bit(*words):
        splits = real(*words)
        pixels = splits.train.pixels.clone()
        pixels[5, 0, 3, 3] ^= 1
        return replace(splits, train=replace(splits.train, pixels=pixels))

    monkeypatch.setattr(experiment, 'load', one_bit)
    with pytest.raises(ValueError, match='another run: the data was'):
        go_on(part)
    monkeypatch.setattr(experiment, 'load', real)
    monkeypatch.setattr('jepa_lit.__version__', '9.9')
    with pytest.warns(UserWarning, match='jepa_lit was .* is 9.9'):
        go_on(part)


def test_files_of_another_run_are_noticed(part):
    "The recipe, the checkpoints or the model of a run with another seed"
    go_on(part)
    other = train(
        tiny(seed=1), 'other', Options(checkpoint_every=2), progress=False, say=silent, evaluate=False
    )
    for name in ('recipe.json', 'model.safetensors', 'checkpoints'):
        mixed = shutil.copytree(part.path, 'mixed', dirs_exist_ok=True)
        if name == 'checkpoints':
            shutil.rmtree(Path(mixed, name))
        (shutil.copytree if name == 'checkpoints' else shutil.copy)(other.path / name, Path(mixed, name))
        for which in ('last', 'best'):
            if (name, which) not in (('model.safetensors', 'best'), ('checkpoints', 'last')):
                with pytest.raises(ValueError, match='of another run: run.seed was'):
                    load_run(mixed, which)


def test_more_steps_are_said_and_the_old_end_can_be_kept(part):
    lines = {}
    for kept in (None, 6):
        run = Run(shutil.copytree(part.path, f'kept{kept}'))
        made = recipe(run.recipe, steps=12, schedule_steps=kept)
        if kept:
            go_on(run, made)
        else:
            with pytest.warns(
                UserWarning, match='is for 12 steps, was for 6: the learning rate goes from .* to'
            ):
                go_on(run, made)
        assert run.recipe == made
        lines[kept] = [line['lr'] for line in run.lines()]
    whole = [line['lr'] for line in train(tiny(), 'w', progress=False, say=silent, evaluate=False).lines()]
    assert lines[6] == [*whole, *[whole[-1]] * 6]
    assert lines[None][:4] == whole[:4] and lines[None][4] > whole[4]


def test_a_full_disk_at_the_first_checkpoint_does_not_block(tmp_path, monkeypatch):
    def full(*words):
        raise OSError(28, 'No space left on device')

    options = Options(checkpoint_every=2)
    for on_full in ('stop', 'go on'):
        with monkeypatch.context() as patch:
            patch.setattr('jepa_lit.checkpoints.write_checkpoint', full)
            patch.setattr(experiment, 'save_model', full)
            with pytest.raises(OSError, match='No space left'):
                how = replace(options, on_full=on_full)
                train(tiny(), on_full, how, progress=False, say=silent, evaluate=False)
        run = Run.open(on_full)
        assert len(run.lines()) >= 4
        with pytest.warns(UserWarning, match='starting again at step 0'):
            go_on(run)
        assert len(run.lines()) == 6
    shutil.rmtree(run.path / 'checkpoints')
    os.unlink(run.path / 'model.safetensors')
    with pytest.raises(ValueError, match='its checkpoints are gone'):
        go_on(run)


def test_a_clock_that_is_set_back(tmp_path, monkeypatch):
    monkeypatch.setattr(time, 'time', lambda now=iter(range(10**6, 0, -3600)): next(now))
    run = train(tiny(), 'r', minutes=0, progress=False, say=silent, evaluate=False)
    told = run.read('metrics.json')
    assert told['status'] == 'stopped by the time limit' and 0 <= told['wall_seconds'] < 600


def test_a_diverged_run_says_so(tmp_path, monkeypatch):
    real = experiment.embed_all

    def far(embed, *words, **how):
        z, kept = real(embed, *words, **how)
        return z * 1e30, kept

    monkeypatch.setattr(experiment, 'embed_all', far)
    with pytest.raises(FloatingPointError, match='the run has diverged'):
        train(tiny(), 'r', progress=False, say=silent)
    assert Run.open('r').read('metrics.json')['status'].startswith('failed: the run has diverged')

"Runs that are stopped, damaged, foreign or hostile"
import json, os, pickle, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import pytest, torch
from safetensors.torch import save_file
from jepa_lit.data import load, normalisation
from jepa_lit.training import Run, build, fit, load_model, load_run, read_checkpoint, recipe, save_model

small = recipe('digits', widths=(8, 16), hidden=32, batch=32, global_views=2, slices=16, steps=8, precision='float32', checkpoint_every=3)
ijepa = recipe('digits', method='ijepa', patch=8, width=16, depth=1, heads=2, predictor_width=8, predictor_depth=1, batch=32, steps=8, precision='float32', checkpoint_every=3, watch_every=4, final_weight_decay=.4)
both = pytest.mark.parametrize('made', [small, ijepa], ids=['lejepa', 'ijepa'])
data = load('digits').train
def fresh(r=small): return build(r, 32, *normalisation(data))


@both
def test_resume_after_a_kill_is_exact(made, tmp_path):
    "SIGKILL leaves the last checkpoint; the resumed run ends with the same bits"
    code = f"""
import os, signal
from tests_helper import *
made = {made.method!r} == 'ijepa' and ijepa or small
run = Run.create({str(tmp_path/'run')!r}, made); log = run.log
def log_and_die(line):
    log(line)
    if line['step'] == 4: os.kill(os.getpid(), signal.SIGKILL)
run.log = log_and_die
fit(fresh(made), data, made, run, progress=False)
"""
    (tmp_path/'tests_helper.py').write_text(f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_training import *\n")
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(tmp_path), str(Path(__file__).parent.parent)])})
    assert done.returncode == -signal.SIGKILL
    run, whole, part = Run.open(tmp_path/'run'), fresh(made), fresh(made)
    assert read_checkpoint(run.path/'checkpoint.pt')['step'] == 3
    fit(whole, data, made, progress=False); fit(part, data, made, run, progress=False)
    for (k, a), b in zip(whole.state_dict().items(), part.state_dict().values()): assert torch.equal(a, b), k
    assert [l['step'] for l in run.lines()] == list(range(8))


def test_interrupt_saves_and_time_limit_stops(tmp_path):
    run, method = Run.create(tmp_path/'run', small), fresh()
    log = run.log
    def interrupt(line): log(line); os.kill(os.getpid(), signal.SIGINT) if line['step'] == 1 else None
    run.log = interrupt
    assert fit(method, data, small, run, progress=False)['status'] == 'interrupted'
    assert read_checkpoint(run.path/'checkpoint.pt')['step'] == 2
    assert fit(fresh(), data, small, Run.create(tmp_path/'b', small), minutes=0., progress=False)['status'] == 'stopped by the time limit'


class Hostile:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (self.path,)


@pytest.mark.parametrize('damage', ['truncated', 'empty', 'hostile', 'foreign', 'other'])
def test_bad_checkpoint(damage, tmp_path, unchecked):
    run = Run.create(tmp_path/'run', small); f = run.path/'checkpoint.pt'
    fit(fresh(), data, small, run, progress=False)
    if damage == 'truncated': f.write_bytes(f.read_bytes()[:1000])
    if damage == 'empty': f.write_bytes(b'')
    if damage == 'hostile': f.write_bytes(pickle.dumps(Hostile(str(tmp_path/'owned'))))
    if damage == 'foreign': torch.save(dict(weights=torch.zeros(2)), f)
    other = replace(small, widths=(8, 24)) if damage == 'other' else small
    with pytest.raises(ValueError) as e: fit(fresh(other), data, other, run, progress=False)
    assert 'checkpoint.pt' in str(e.value) and '\n' not in str(e.value) and not (tmp_path/'owned').exists()


@pytest.mark.parametrize('damage', ['truncated', 'empty', 'pickle', 'foreign', 'header', 'missing'])
def test_bad_model(damage, tmp_path, unchecked):
    run = Run.create(tmp_path/'run', small); f = run.path/'model.safetensors'
    save_model(fresh(), small, f)
    assert load_run(run.path).preprocess.size == 32
    if damage == 'truncated': f.write_bytes(f.read_bytes()[:-500])
    if damage == 'empty': f.write_bytes(b'')
    if damage == 'pickle': f.write_bytes(pickle.dumps(Hostile(str(tmp_path/'owned'))))
    if damage == 'foreign': save_file({'w': torch.zeros(2)}, f)
    if damage == 'header': save_file({'w': torch.zeros(2)}, f, {'jepa_lit': '0', 'recipe': '{"data": "digits", "widths": "wide"}', 'preprocess': 'no'})
    if damage == 'missing': f.unlink()
    with pytest.raises((ValueError, FileNotFoundError)) as e: load_run(run.path)
    assert str(tmp_path) in str(e.value) and '\n' not in str(e.value) and not (tmp_path/'owned').exists()


def test_model_file_is_enough(tmp_path):
    method = fresh(); fit(method, data, replace(small, steps=2), progress=False)
    save_model(method, small, tmp_path/'m.safetensors')
    back, made = load_model(tmp_path/'m.safetensors')
    assert made == small
    with torch.no_grad(): assert torch.equal(back.embed(data.pixels[:4]), method.eval().embed(data.pixels[:4]))


def test_every_recipe_builds():
    from jepa_lit.data import SETS
    for name in SETS:
        r = recipe(name); channels = 1 if 'digits' in r.views or 'grey' in r.views else 3
        method = build(replace(r, batch=2, slices=4), SETS[name]['size'], (.5,)*channels, (.2,)*channels)
        loss, _ = method(method.prepare(torch.randint(0, 256, (2, channels) + (SETS[name]['size'],)*2, dtype=torch.uint8)))
        assert loss.isfinite(), name


def test_run_folder(tmp_path, unchecked):
    Run.create(tmp_path/'run', small)
    with pytest.raises(ValueError, match='--overwrite'): Run.create(tmp_path/'run', small)
    Run.create(tmp_path/'run', replace(small, seed=4), overwrite=True)
    assert Run.open(tmp_path/'run').recipe.seed == 4
    (tmp_path/'mine').mkdir(); (tmp_path/'mine/thesis.txt').write_text('years of work')
    with pytest.raises(ValueError, match='not a run'): Run.create(tmp_path/'mine', small, overwrite=True)
    assert (tmp_path/'mine/thesis.txt').exists()
    (tmp_path/'run/recipe.json').write_text('{')
    with pytest.raises(ValueError, match='JSON'): Run.open(tmp_path/'run').recipe


@both
def test_model_file_alone_gives_the_method_back(made, tmp_path):
    method = fresh(made); fit(method, data, replace(made, steps=2), progress=False)
    save_model(method, made, tmp_path/'model.safetensors')
    again, told = load_model(tmp_path/'model.safetensors')
    assert told == made and torch.equal(again.embed(data.pixels[:8]), method.eval().embed(data.pixels[:8]))


def test_watch_speaks_of_a_collapse():
    "Weights that make all features equal: the log has the figures, the warning the words"
    method = fresh(ijepa)
    with torch.no_grad(): method.target.model.norm.weight.zero_(); method.encoder.norm.weight.zero_()
    with pytest.warns(UserWarning, match='step 3: .*collapsed to a point'): fit(method, data, replace(ijepa, steps=4, lr=1e-9), progress=False)


def test_watch_is_silent_otherwise(recwarn):
    fit(fresh(), data, replace(small, watch_every=4), progress=False)
    assert not [w for w in recwarn if 'collaps' in str(w.message)]


def test_accumulation(unchecked):
    "The same weights to rounding for I-JEPA; refused for LeJEPA, with the reason"
    whole, parts = fresh(ijepa), fresh(ijepa)
    fit(whole, data, replace(ijepa, steps=2), progress=False); fit(parts, data, replace(ijepa, steps=2, accumulate=3), progress=False)
    for (k, a), b in zip(whole.state_dict().items(), parts.state_dict().values()): torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4, msg=k)
    with pytest.raises(ValueError, match='accumulate=2 .*SIGReg'): fit(fresh(), data, replace(small, accumulate=2), progress=False)


@pytest.mark.parametrize('words, said', [(dict(lamb='.1'), "'lamb' belongs to method lejepa, not to ijepa"), (dict(patchh='4'), 'did you mean patch'), (dict(momentum='.9'), 'momentum has two numbers'),
    (dict(momentum='.9,1.2'), r'lies in \[0, 1\]'), (dict(masks='blok'), 'did you mean block'), (dict(method='jepa'), 'did you mean'), (dict(target_scale='a,b'), 'numbers, separated by commas')])
def test_ijepa_recipes_that_are_refused(words, said, unchecked):
    with pytest.raises(ValueError, match=said) as e: recipe('digits', **{'method': 'ijepa', **words})
    assert '\n' not in str(e.value)

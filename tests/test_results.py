"The scripts behind the committed records still run: a few steps of a trial, without the probes"

import importlib.util
import pytest
from conftest import root


def script(name):
    "A script of results/ as a module"
    spec = importlib.util.spec_from_file_location(name.replace('-', '_'), root / 'results' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_selector(monkeypatch):
    m = script('selector')
    monkeypatch.setattr(m, 'STEPS', 20)
    monkeypatch.setattr(m, 'scores', lambda method, splits: ({}, {}))
    told = m.trial(0.1, (2, 0), 0)
    assert (
        told['status'] == 'done'
        and [l['step'] for l in told['curve']] == [19]
        and told['loss'] == pytest.approx(0.9 * told['prediction'] + 0.1 * told['sigreg'], rel=1e-5)
    )


def test_ijepa_trials(monkeypatch):
    m = script('ijepa-trials')
    monkeypatch.setattr(m, 'scores', lambda method, splits: {})
    told = m.trial('base', steps=3)
    assert [l['step'] for l in told['curve']] == [0] and told['curve'][0]['loss'] > 0


@pytest.mark.parametrize('how', [{}, dict(still=True, weight=0.05), dict(still=True, stop=False)])
def test_ijepa_sigreg(monkeypatch, how):
    m, seen = script('ijepa-sigreg'), []
    monkeypatch.setattr(m, 'STEPS', 100)
    monkeypatch.setattr(m, 'look', lambda method, splits, probe: seen.append(probe) or {})
    monkeypatch.setattr(
        m,
        'recipe',
        lambda *a, real=m.recipe, **k: real(
            *a, **k | dict(encoder=dict(width=24, depth=1), predictor=dict(width=16, depth=1), batch=4)
        ),
    )
    told = m.arm('short', **how)
    assert (
        [l['step'] for l in told['looks']] == [0, 100] and seen == [True, False] and len(told['curve']) == 10
    )
    assert ('regularizer' in told['curve'][0]) == ('weight' in how)

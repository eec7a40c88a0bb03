"The benchmark runs, agrees with itself and reports; what it measures is asserted nowhere"

import json
import random
import pytest
import torch
from jepa_lit import bench
from jepa_lit.bench import PARTS, QUICK, race, small_ijepa
from jepa_lit.commands import run_command
from jepa_lit.plain import plain_loss, plain_masks


@pytest.mark.parametrize('part', PARTS)
def test_quick(part, tmp_path, monkeypatch, capsys, unchecked):
    monkeypatch.chdir(tmp_path)
    words = [part, '--quick', '--threads', '1', '--out', 'a/b.json']
    assert run_command(bench.jepa_lit_bench.__wrapped__, words) == 0
    told, out = json.loads((tmp_path / 'a/b.json').read_text()), capsys.readouterr().out
    assert told['quick'] and told['machine']['threads'] == 1 and part + ': ' in out
    rows = [r for r in told[part].values() if isinstance(r, dict)]
    assert len(rows) >= (1 if part == 'views' else 2) and all(r['ratio'] > 0 for r in rows)


def test_unknown_part(capsys, unchecked):
    assert run_command(bench.jepa_lit_bench.__wrapped__, ['sigregg']) == 2
    assert capsys.readouterr().err.splitlines() == [
        "jepa_lit_bench: error: unknown part 'sigregg': did you mean sigreg?"
    ]


def test_plain_forms_are_the_same_mathematics():
    method = small_ijepa(32, depth=2)
    x, masks = torch.rand(3, 3, 32, 32), method.masks(3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(plain_loss(method, x, masks), method.loss(x, masks))


def test_a_benchmark_of_unequal_forms_fails(monkeypatch):
    "A fast form that computes something else is not timed"
    forward = bench.PlainIJEPA.forward
    monkeypatch.setattr(bench.PlainIJEPA, 'forward', lambda self, batch: (forward(self, batch)[0] * 1.01, {}))
    with pytest.raises(ArithmeticError, match='differ by'):
        bench.bench_ijepa(**QUICK['ijepa'])


def test_masks_are_disjoint():
    m = plain_masks(20, random.Random(1))
    for i in range(20):
        assert not set(m.context[i].tolist()) & set(m.targets[:, i].flatten().tolist())


def test_race_alternates():
    seen = []
    race(dict(a=lambda: seen.append('a'), b=lambda: seen.append('b')), 3)
    assert seen == ['a', 'b'] * 4

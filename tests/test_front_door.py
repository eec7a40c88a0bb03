"What a newcomer meets first: names of `jepa_lit` itself, help texts, types, and what an import costs"

import ast
import importlib
import pydoc
import re
import subprocess
import sys
import pytest
from conftest import root

library = root / 'jepa_lit'
modules = {p.stem: p for p in sorted(library.glob('[!_]*.py'))}
stub = ast.parse((library / '__init__.pyi').read_text())
lines = [(n.module, a.name) for n in stub.body if isinstance(n, ast.ImportFrom) for a in n.names]
names = {name: module for module, name in lines if module}

RELIED_ON = """
    sincos_2d ViT vit Predictor MultiBlock EMA IJEPA epps_pulley epps_pulley_exact SIGReg MultiCrop LeJEPA
    load_ijepa load_predictor to_hf from_hf load_run prediction projector directions load read_image probe knn linear
    embed_all recipe build Run Table write_shards ConvNet to_timm to_meta fit stream
""".split()

# Private parts of dependencies, each in one place that says what to do when it goes.
PRIVATE = {
    ('callbacks', '_compiled_call_impl'),  # takes a compilation back
    ('cost', '_scaled_dot_product_flash_attention'),  # a GPU's kernel, on the meta device
    ('parallel', '_MEM_FORMAT_ENCODING'),  # in the index of a sharded checkpoint, with the next two
    ('parallel', '_StorageInfo'),
    ('parallel', '_get_layout'),
    ('slices', '_C'),  # whether a backward pass is running, with the next one
    ('slices', '_current_graph_task_id'),
}


def python(code):
    "What a fresh interpreter prints"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_names_that_others_rely_on():
    assert not [name for name in RELIED_ON if name not in names]


def test_every_name_is_where_the_stub_says():
    import jepa_lit

    for name, module in names.items():
        assert getattr(jepa_lit, name) is getattr(importlib.import_module(f'jepa_lit.{module}'), name)
    assert set(names) <= set(dir(jepa_lit))
    assert jepa_lit.sigreg is importlib.import_module('jepa_lit.sigreg'), 'a module stays a module'


def test_no_name_equals_a_module():
    assert not set(names) & set(modules)
    assert {name for module, name in lines if not module} == set(modules), 'every module, and nothing else'


def test_import_alone_does_not_load_torch():
    assert python('import jepa_lit, sys; print("torch" in sys.modules, jepa_lit.__version__)').startswith(
        'False '
    )


HEAVY = (
    'torchvision',
    'PIL',
    'scipy',
    'sklearn',
    'matplotlib',
    'tqdm',
    'torch._dynamo',
    'torch._inductor',
    'einops',
)


def test_sigreg_brings_nothing_heavy():
    "What `import torch` does not load, SIGReg does not either"
    look = f'import sys; print([m for m in {HEAVY} if m in sys.modules])'
    assert python(f'from jepa_lit import SIGReg; {look}') == python(f'import torch; {look}')


def test_help_tells_the_story():
    import jepa_lit

    text = pydoc.render_doc(jepa_lit)
    assert all(word in text for word in ('IJEPA', 'LeJEPA', 'SIGReg', 'collapse', 'jepa_lit_train'))


@pytest.mark.parametrize(
    'name', ['LeJEPA', 'IJEPA', 'SIGReg', 'MultiBlock', 'MultiCrop', 'ViT', 'Predictor', 'EMA']
)
def test_help_of_a_class_shows_its_parameters(name):
    import jepa_lit

    text = pydoc.plain(pydoc.render_doc(getattr(jepa_lit, name)))
    assert 'Initialize internal Module state' not in text
    for parameter in list(getattr(jepa_lit, name).__init__.__annotations__)[:3]:
        assert re.search(rf'^ *\|? *{parameter}\b.*\n? .*\w', text, re.M), f'{parameter} with its comment'


def public_functions(body, place):
    "(place, function) of what people call: not what is private, and not functions inside functions"
    for n in body:
        name = getattr(n, 'name', '')
        if name.startswith('_') and name != '__init__':
            continue
        if isinstance(n, ast.FunctionDef):
            yield f'{place}.{name}', n
        elif isinstance(n, ast.ClassDef):
            yield from public_functions(n.body, f'{place}.{name}')


@pytest.mark.parametrize('module', modules)
def test_every_public_parameter_has_a_type(module):
    untyped = []
    for place, function in public_functions(ast.parse(modules[module].read_text()).body, module):
        for a in [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]:
            if a.annotation is None and a.arg not in ('self', 'cls'):
                untyped.append(f'{place}({a.arg})')
    assert not untyped


def private(name):
    return (
        name.startswith('_') and not name.startswith('__') and name != '_replace'
    )  # public, of named tuples


def test_private_parts_of_dependencies():
    trees = {module: ast.parse(path.read_text()) for module, path in modules.items()}
    ours = set()
    for tree in trees.values():
        for n in ast.walk(tree):
            if isinstance(n, (ast.FunctionDef, ast.ClassDef)):
                ours.add(n.name)
            elif (
                isinstance(n, ast.Attribute)
                and isinstance(n.ctx, ast.Store)
                and getattr(n.value, 'id', '') == 'self'
            ):
                ours.add(n.attr)
            elif isinstance(n, (ast.AnnAssign, ast.Assign)):
                ours |= {
                    t.id
                    for t in getattr(n, 'targets', [getattr(n, 'target', None)])
                    if isinstance(t, ast.Name)
                }
    used = set()
    for module, tree in trees.items():
        for n in ast.walk(tree):
            if isinstance(n, ast.Attribute) and private(n.attr) and n.attr not in ours:
                used.add((module, n.attr))
            if (
                isinstance(n, ast.Constant)
                and module == 'parallel'
                and re.fullmatch(r'_[A-Za-z_]+', str(n.value))
            ):
                used.add((module, n.value))  # names that its reader of indices lets through
            if isinstance(n, ast.ImportFrom) and not n.level:
                used |= {(module, part) for part in (n.module or '').split('.') if private(part)}
                used |= {(module, a.name) for a in n.names if private(a.name)}
            if isinstance(n, ast.Import):
                used |= {(module, part) for a in n.names for part in a.name.split('.') if private(part)}
    assert used == PRIVATE


PROGRAM = """
import torch
from jepa_lit import LeJEPA, MultiCrop, SIGReg

net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 16))
method = LeJEPA(net, views=MultiCrop(global_views=2, local_views=0, global_size=8), slices=64)
regularizer = SIGReg(slices=256)
optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3)
loss, logs = method(method.prepare(torch.zeros(4, 3, 8, 8, dtype=torch.uint8)))
z: torch.Tensor = regularizer(torch.randn(8, 16))
loss.backward()
optimizer.step()
"""


def mypy(tmp_path, text, *options):
    "mypy's exit code and words on a user's program"
    pytest.importorskip('mypy')
    (tmp_path / 'program.py').write_text(text)
    command = [sys.executable, '-m', 'mypy', '--cache-dir', str(tmp_path / 'cache'), *options, 'program.py']
    import os

    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ, MYPYPATH=str(root))
    )
    return done.returncode, done.stdout + done.stderr


def test_types_reach_a_user(tmp_path):
    "torch itself is left out, so that this takes seconds; the slow test reads it too"
    (tmp_path / 'mypy.ini').write_text(
        '[mypy]\nfollow_imports = silent\n[mypy-torch.*]\nfollow_imports = skip\n'
    )
    code, said = mypy(tmp_path, PROGRAM)
    assert code == 0, said
    code, said = mypy(tmp_path, PROGRAM.replace('SIGReg(slices=256)', 'SIGReg(slice=256)'))
    assert code == 1 and '"slice"' in said, said


@pytest.mark.slow
def test_types_reach_a_user_with_all_of_torch(tmp_path):
    (tmp_path / 'mypy.ini').write_text('[mypy]\nfollow_imports = silent\n')
    code, said = mypy(tmp_path, PROGRAM)
    assert code == 0, said
    code, said = mypy(tmp_path, PROGRAM.replace('SIGReg(slices=256)', 'SIGReg(slice=256)'))
    assert code == 1 and '"slice"' in said, said

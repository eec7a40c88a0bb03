"How the chapters are built. Running them is `nbdev_test`'s work"

import ast
import base64
import re
import struct
import sys
import pytest
from conftest import root

sys.path.insert(0, str(root / 'docs'))
from build import PARTS
from notebooks import cfg, chapters, directives, read, stale

books = [p for p in chapters() if p.stem != 'index']
numbers = {p.stem[3:]: int(p.stem[:2]) for p in books}
no_figure = {'launch', 'commands', 'experiment'}  # chapters with nothing to draw
RESULTS = 80  # from here on, pages read records and export nothing
pages_only = {'sixty_lines'}  # before them, pages that export nothing


def code(nb):
    return [c for c in nb.cells if c.cell_type == 'code']


def exports(c):
    return directives(c).keys() & {'export', 'exports', 'exporti'}


def images(nb):
    return [o.data['image/png'] for c in code(nb) for o in c.outputs if 'image/png' in o.get('data', {})]


def imported(source):
    "Modules that a cell imports; those of the library by their full names"
    for n in ast.walk(ast.parse(re.sub(r'^%', '#%', source, flags=re.M))):
        if isinstance(n, ast.Import):
            yield from (a.name for a in n.names)
        elif isinstance(n, ast.ImportFrom):
            assert not (n.names[0].name == '*' and n.level), f'a star import from the library: {source}'
            if n.level:
                yield from (f'jepa_lit.{n.module}' if n.module else f'jepa_lit.{a.name}' for a in n.names)
            elif n.module == 'jepa_lit':
                yield from (f'jepa_lit.{a.name}' for a in n.names)
            else:
                yield n.module


each = pytest.mark.parametrize('path', books, ids=lambda p: p.stem)
every = pytest.mark.parametrize('path', chapters(), ids=lambda p: p.stem)


def test_names_and_parts():
    "Numbers are unique, and their decades are the parts of the book"
    assert books and all(re.fullmatch(r'\d\d_[a-z_]+', p.stem) for p in books)
    assert len(set(numbers.values())) == len(numbers) == len(books)
    assert {p.stem[0] for p in books} <= set(PARTS)


@each
def test_opening(path):
    (first,) = [c.source for c in read(path).cells[:1]]
    assert re.match(r'# \S', first) and re.search(r'^> \S', first, re.M), 'a title and a claim come first'
    text = '\n'.join(c.source for c in read(path).cells[:3])
    if numbers[path.stem[3:]] < RESULTS:
        assert all(re.search(rf'\b{w}\b', text) for w in ('Have', 'Question', 'Get'))


@each
def test_next_names_the_page_that_follows(path):
    following = dict(zip(books, books[1:])).get(path)
    ending = '\n'.join(c.source for c in read(path).cells if c.cell_type == 'markdown').rpartition(
        '\n## Next'
    )[2]
    if following:
        assert f'`{following.stem}`' in ending, f'Next should name {following.stem}'


@each
def test_exports_its_module(path):
    nb = read(path)
    names = [directives(c).get('default_exp') for c in code(nb)]
    if numbers[path.stem[3:]] >= RESULTS or path.stem[3:] in pages_only:
        assert not any(names) and not any(exports(c) for c in code(nb)), 'this page exports nothing'
        return
    assert names[0] == path.stem[3:], 'the first code cell names the module'
    assert (root / 'jepa_lit' / f'{path.stem[3:]}.py').exists()
    assert 'nbdev_export()' in code(nb)[-1].source and 'hide' in directives(code(nb)[-1])


@each
def test_imports_run_downhill(path):
    "Exported code imports only chapters with lower numbers, and none of the tools for development"
    for c in code(read(path)):
        for m in imported(c.source) if exports(c) else ():
            assert m.split('.')[0] not in ('nbdev', 'execnb', 'fastcore', 'beartype', 'pytest'), (
                f'{m} is for development only'
            )
            if m.startswith('jepa_lit.') and m != 'jepa_lit.__version__':
                assert numbers.get(m.split('.')[1], 99) < numbers[path.stem[3:]], (
                    f'{path.stem} exports code that imports {m}'
                )


@each
def test_no_page_imports_what_it_exports(path):
    "A page that did would pass on a stale export; code run in a child process must"
    for c in code(read(path)):
        assert f'jepa_lit.{path.stem[3:]}' not in imported(c.source), c.source


def test_sixty_lines_need_no_tools():
    "The page that people send runs wherever the library is installed"
    (path,) = [p for p in books if p.stem == '00_sixty_lines']
    source = [c.source for c in code(read(path))]
    needs = {m.split('.')[0] for s in source for m in imported(s)}
    assert needs <= {'copy', 'inspect', 'IPython', 'torch', 'matplotlib', 'sklearn', 'jepa_lit'}
    assert not [s for s in source if '%' in s[:1] or '#| hide' in s or '../' in s]


@each
def test_one_export_a_cell(path):
    for c in code(read(path)):
        body = ast.parse(c.source).body if exports(c) else []
        defs = [n.name for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name[0] != '_']
        assert len(defs) <= 1, f'{defs} in one cell'


@each
def test_figures(path):
    pics = images(read(path))
    assert pics or path.stem[3:] in no_figure, 'no figure'
    for p in pics:
        w, h = struct.unpack('>II', base64.b64decode(p[:64])[16:24])
        assert w <= 1200 and h <= 1600, f'a figure of {w} x {h} pixels: 100 dpi and 12 inches are enough'


@every
def test_leaves_torch_as_it_was(path):
    "`nbdev_test` runs many chapters in one process: who switches gradients off switches them on again"
    text = '\n'.join(
        c.source for c in code(read(path)) if 'nbdev_export(' not in c.source
    )  # which nbdev_test skips
    assert text.count('set_grad_enabled(False)') <= text.count('set_grad_enabled(True)')
    assert text.count('set_default_dtype(') == 2 * len(
        re.findall(r'finally:\s+torch.set_default_dtype\(', text)
    )


@every
def test_outputs(path):
    assert not stale(path), (
        f'code has changed since the outputs were stored: python docs/refresh.py {path.stem}'
    )
    assert path.stat().st_size <= 400_000, f'{path.stat().st_size} bytes'
    for c in code(read(path)):
        for o in c.outputs:
            assert o.output_type != 'error' and o.get('name') != 'stderr'
            text = o.get('text', '') + ''.join(
                str(v) for k, v in o.get('data', {}).items() if k.startswith('text/')
            )
            assert not re.search(r'\b0x[0-9a-f]{8,}|\r|/home/|/root/|/tmp/|\\Users\\', text), (
                f'addresses, progress bars or paths of one machine: {text[:200]}'
            )


@every
def test_text_has_no_control_characters(path):
    "A backslash lost on the way turns a formula's command into one"
    assert not [c.source for c in read(path).cells if re.search(r'[\x00-\x08\x0b-\x1f]', c.source)]


def test_flags_are_known():
    "A misspelt flag would run everywhere"
    known = {
        'default_exp',
        'export',
        'exports',
        'exporti',
        'hide',
        'eval',
        'echo',
        'output',
        'include',
        'code-fold',
        'fig-alt',
        'fig-cap',
        'filter_stream',
        'hide_line',
        'hide_input',
        'hide_output',
    } | set(cfg.tst_flags.split())
    for p in chapters():
        for c in code(read(p)):
            assert directives(c).keys() <= known, f'{p.stem}: {directives(c).keys() - known}'

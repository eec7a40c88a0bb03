"""Builds the site: the notebooks as pages, with an entry for each exported name.

    python docs/build.py                # from the outputs stored in the notebooks
    python docs/build.py --execute      # runs the notebooks first (in a copy)

Sphinx, MyST-NB and Furo, after nbdev's own notebook processors; warnings are errors. MathJax and the widget
manager come from npm, once, so that pages work offline; without npm formulas stay as TeX.
"""

import argparse, ast, importlib, json, os, re, shutil, subprocess, sys, tempfile
from functools import cache
from pathlib import Path
import nbformat
from execnb.nbio import dict2nb, mk_cell, nb2dict
from nbdev.process import NBProcessor, Processor
from nbdev.processors import (
    FilterDefaults,
    FrontmatterProc,
    add_fold,
    add_links,
    add_show_docs,
    clean_show_doc,
    exec_show_docs,
    insert_warning,
    mv_exports,
)
from nbdev.showdoc import showdoc_nm
from api import described, entry
from notebooks import cfg, chapters, clean, execute, read, root

build = root / '_build'  # git-ignored
packages = {
    'mathjax@3.2.2': ['es5/tex-svg.js'],
    '@jupyter-widgets/html-manager@1.0.15': ['dist/embed.js', 'dist/*.woff*'],
}

# The parts of the book: the decade of a chapter's number, and how the sidebar calls it.
PARTS = {
    '0': 'Start',
    '1': 'I-JEPA',
    '2': 'What was learned',
    '3': 'LeJEPA',
    '4': 'Worlds',
    '5': 'A run',
    '6': 'Many machines',
    '7': 'In use',
    '8': 'Results',
}
pages = root / 'docs/pages'  # further pages, that are no notebooks, and the references
REFERENCE = ('notation', 'glossary', 'family', 'references')


def page(p):
    return re.sub(r'^\d+[a-zA-Z0-9]*_', '', p.stem.lower())  # as nbdev names pages


def vendor(dst, npm=True):
    "MathJax and the widget manager, pinned, from npm; stubs that leave the page alone where there is no npm"
    want = [Path(f).name for fs in packages.values() for f in fs]
    stamp = dst / 'versions.json'
    if stamp.exists() and stamp.read_text() == json.dumps(packages):
        return True
    shutil.rmtree(dst, ignore_errors=True)
    dst.mkdir(parents=True)
    if not npm or not shutil.which('npm'):
        print('no npm: formulas are left as TeX, and widgets are not drawn', file=sys.stderr)
        for f in want:
            if f.endswith('.js'):
                (dst / f).write_text('/* npm was not there when this site was built */\n')
        return False
    for pkg, files in packages.items():
        with tempfile.TemporaryDirectory() as t:
            r = subprocess.run(['npm', 'pack', '--silent', pkg], cwd=t, capture_output=True, text=True)
            if r.returncode:
                sys.exit(
                    f'npm pack {pkg} failed: {r.stderr.strip() or r.stdout.strip()}\n(--no-npm builds without formulas and widgets)'
                )
            shutil.unpack_archive(next(Path(t).glob('*.tgz')), t)
            for f in files:
                for q in Path(t, 'package').glob(f):
                    shutil.copy(q, dst)
    stamp.write_text(json.dumps(packages))
    return True


_defs = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef


def exported(cell):
    "Public names a cell exports and so documents"
    d = getattr(cell, 'directives_', {})
    if cell.cell_type != 'code' or not d.keys() & {'export', 'exports'} or 'hide' in d:
        return []
    names = []
    for o in cell.parsed_() or []:
        if isinstance(o, _defs) and o.name[0] != '_':
            names += [n] if isinstance(n := showdoc_nm(o), str) else n
        if isinstance(o, (ast.Assign, ast.AnnAssign)):
            names += [
                t.id
                for t in getattr(o, 'targets', [getattr(o, 'target', None)])
                if isinstance(t, ast.Name) and t.id[0] != '_'
            ]
    return names


@cache
def module(path):
    "The name of the module that a notebook exports, or None"
    found = [
        re.search(r'^#\|\s*default_exp\s+(\S+)', c.source, re.M)
        for c in read(path).cells
        if c.cell_type == 'code'
    ]
    mod = next((f'{cfg.lib_path.name}.{m[1]}' for m in found if m), None)
    return mod if mod and (cfg.lib_path.parent / (mod.replace('.', '/') + '.py')).exists() else None


@cache
def symbols(path):
    "Names of a chapter that prose may mention: what it exports, and the methods described there"
    if not (mod := module(path)):
        return []
    m, names = importlib.import_module(mod), [n for c in NBProcessor(path).nb.cells for n in exported(c)]
    return names + [
        f'{n}.{k}'
        for n in names
        if '.' not in n and isinstance(vars(m)[n], type)
        for k in described(vars(m)[n])
        if f'{n}.{k}' not in names
    ]


class Api(Processor):
    "After each exporting cell the entries of its names; before an `exports` cell, which shows its source"

    path = None

    def begin(self):
        if not (mod := module(self.path)):
            return
        mod, names = importlib.import_module(mod), [exported(c) for c in self.nb.cells]
        asked = [
            re.match(r'show_doc\(([\w.]+)', c.source) if c.cell_type == 'code' else None
            for c in self.nb.cells
        ]
        own, shown, out = sum(names, []), {m[1] for m in asked if m}, []
        for c, ns, m in zip(self.nb.cells, names, asked):
            docs = [
                mk_cell(self.entry(mod, n, own), 'markdown')
                for n in ([m[1]] if m else [n for n in ns if n not in shown])
            ]
            out += docs if m else docs + [c] if 'exports' in getattr(c, 'directives_', {}) else [c] + docs
        out.insert(1, mk_cell(f'```{{py:module}} {mod.__name__}\n```', 'markdown'))
        for i, c in enumerate(out):
            c.idx_ = i
        self.nb.cells = out

    def entry(self, mod, name, own):
        o, text = mod, Path(mod.__file__).read_text(encoding='utf-8').splitlines()
        for k in name.split('.'):
            o = vars(o)[k]
        line = next(
            (
                i
                for i, l in enumerate(text, 1)
                if re.match(rf'\s*(async )?(def|class) {name.split(".")[-1]}\b|{name}\b[^=]*=', l)
            ),
            1,
        )
        source = f'{cfg.git_url}/blob/{cfg.branch}/{mod.__name__.replace(".", "/")}.py#L{line}'
        about = re.search(r'(?<=\S)\s+#\s*(.+)$', text[line - 1])
        return entry(
            name,
            o,
            {n.split('.')[1] for n in own if n.startswith(name + '.')},
            source,
            method='.' in name,
            comment=about[1] if about else '',
        )


def hide_input_(cell):
    cell.source = f'#| echo: false\n{cell.source}'


def hide_output_(cell):
    cell.source = f'#| output: false\n{cell.source}'


@cache
def papers():
    "The references' keys by how prose names them: `Epps and Pulley 1983`"
    from pybtex.database import parse_file

    found = {}
    for key, e in parse_file(pages / 'references.bib').entries.items():
        names = [' '.join(a.prelast_names + a.last_names) for a in e.persons['author']]
        who = f'{names[0]} et al.' if len(names) > 2 else ' and '.join(names)
        found[who, e.fields['year']] = key
    return found


class Links(Processor):
    "Backticked names, links to other notebooks and references become links between pages"

    path, nbs = None, ()

    def cell(self, cell):
        if cell.cell_type != 'markdown' or not cell.source:
            return
        fenced, lines = False, cell.source.split('\n')
        for i, l in enumerate(lines):
            if l.lstrip().startswith('```'):
                fenced = not fenced
            elif not fenced and not l.startswith(('#', '    ', ':::')):
                lines[i] = self.line(l)
        cell.source = '\n'.join(lines)

    def line(self, l):
        l = re.sub(r'\[([^\]]*)\]\((?:\./|nbs/)?([\w-]+)\.ipynb(#[^)]*)?\)', self.notebook, l)
        l = re.sub(
            r"(?<![\w\[])(?<!\[\()([A-Z][\wé']+(?: and [A-Z][\w]+| et al\.)) (\(?)(\d{4})(?!\d)",
            self.paper,
            l,
        )
        return re.sub(r'(?<![\[`}\w])`(\d\d_\w+|[A-Za-z_][\w.]*)(\(\))?`(?![\]`])', self.name, l)

    def paper(self, m):
        key = papers().get((m[1], m[3]))
        return f'<a href="references.html#cite-{key}">{m[1]} {m[2]}{m[3]}</a>' if key else m[0]

    def notebook(self, m):
        p = next((p for p in self.nbs if p.stem == m[2]), None)
        return f'[{m[1]}]({page(p)}.ipynb{m[3] or ""})' if p else m[1]  # a chapter still to come

    def name(self, m):
        nm = m[1].removeprefix(f'{cfg.lib_path.name}.')
        for p in self.nbs:
            if nm == p.stem or m[1] == module(p):
                return f'{{doc}}`{m[1]} </{page(p)}>`'
        hits = {
            module(p): n
            for p in self.nbs
            for n in symbols(p)
            if nm in (n, f'{module(p).split(".", 1)[1]}.{n}')
        }
        mod = module(self.path) if module(self.path) in hits else next(iter(hits)) if len(hits) == 1 else None
        return f'{{py:obj}}`{m[1]}{m[2] or ""} <{mod}.{hits[mod]}>`' if mod else m[0]


_tags = {
    ('echo', 'false'): 'remove-input',
    ('code-fold', 'true'): 'hide-input',
    ('output', 'false'): 'remove-output',
    ('include', 'false'): 'remove-cell',
}
_option = re.compile(r'^#\|\s*([\w-]+):?[ \t]*(.*)\n?', re.M)


def prose(md):
    "The last sentence of a Markdown cell, as plain text: what a figure shows, where its cell does not say"
    last = [
        p for p in re.split(r'\n\s*\n', md.strip()) if not p.startswith(('#', '$$', '```', '|', '>', ':::'))
    ][-1:]
    text = re.sub(r'\{[\w:]+\}`([^`<]*?)(?: <[^>]*>)?`', r'\1', ' '.join(''.join(last).split()))
    text = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', text)
    return re.split(r'(?<=[.!?:])\s+(?=[A-Z`*])', re.sub(r'[`*$\\]', '', text).strip(' -'))[-1]


def own_images(text):
    "Our pictures, under docs/_static for README: `picture` becomes one for light pages and one for dark ones"
    text = text.replace('"../docs/_static/', '"_static/')

    def both(m):
        light = re.sub(r'<img ', '<img class="only-light" ', m[2])
        dark = re.sub(r'src="[^"]*"', f'src="{m[1]}"', m[2]).replace('<img ', '<img class="only-dark" ')
        return light + dark

    return re.sub(r'<picture><source [^>]*srcset="([^"]*)">(<img [^>]*>)</picture>', both, text)


def to_myst(path, nbs, nb):
    "One notebook, from nbdev's conventions to MyST's"
    drop = {
        FrontmatterProc,
        add_show_docs,
        exec_show_docs,
        insert_warning,
        clean_show_doc,
        add_links,
        add_fold,
        mv_exports,
    }
    here = [type(o.__name__, (o,), dict(path=path, nbs=nbs)) for o in (Api, Links)]
    nb = nb2dict(
        NBProcessor(
            nb=dict2nb(json.loads(nbformat.writes(nb))),
            procs=here[:1]
            + [hide_input_, hide_output_]
            + [p for p in FilterDefaults().procs() if p not in drop]
            + here[1:],
            process=True,
        ).nb
    )
    nb, before = nbformat.reads(json.dumps(nb), 4), ''
    for c in nb.cells:
        if c.cell_type == 'markdown':
            c.source = own_images(c.source)
            before = c.source if not c.source.startswith(':::') else before
            continue
        options = dict(_option.findall(c.source))
        c.source = _option.sub('', c.source).strip('\n')
        c.metadata['tags'] = [t for (k, v), t in _tags.items() if options.get(k, '').strip() == v]
        alt = options.get('fig-alt', '').strip(' "\'') or prose(before) or 'figure'
        c.metadata['mystnb'] = {'image': {'alt': alt}} | (
            {'figure': {'caption': options['fig-cap'].strip(' "\'')}} if 'fig-cap' in options else {}
        )
    nb.metadata['language_info'] = {'name': 'python', 'pygments_lexer': 'ipython3'}
    return nb


def write_sources(dst, execute_first=False):
    "The notebooks as Sphinx will read them, and the list of pages"
    shutil.rmtree(dst, ignore_errors=True)
    dst.mkdir(parents=True)
    nbs = chapters()
    for p in nbs:
        nb = read(p)
        if execute_first:
            print('executing', p.name, flush=True)
            nb, _ = clean(execute(nb), read(p))
        nb = to_myst(p, nbs, nb)
        if p.stem == 'index':
            index = nb
        else:
            nbformat.write(nb, dst / f'{page(p)}.ipynb')
    if not nbs or nbs[0].stem != 'index':
        index = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f'# {cfg.lib_name}')])
    shutil.copy(pages / 'references.bib', dst)
    links = Links(nb=None)
    links.path, links.nbs = nbs[0], nbs
    for name in REFERENCE:
        lines = (pages / f'{name}.md').read_text(encoding='utf-8').split('\n')
        text = '\n'.join(l if l.startswith(('#', '$', '```')) else links.line(l) for l in lines)
        (dst / f'{name}.md').write_text(text, encoding='utf-8')
    for decade, caption in {**PARTS, 'reference': 'Reference'}.items():
        toc = (
            '\n'.join(page(p) for p in nbs if p.stem[0] == decade)
            if decade in PARTS
            else '\n'.join(REFERENCE)
        )
        if toc:
            index.cells.append(
                nbformat.v4.new_markdown_cell(f'```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{toc}\n```')
            )
    nbformat.write(index, dst / 'index.ipynb')


def main(argv=None):
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--out', type=Path, default=root / '_docs', help='where the site goes; replaced')
    ap.add_argument(
        '--execute', action='store_true', help='run the notebooks instead of using their stored outputs'
    )
    ap.add_argument('--no-npm', action='store_true', help='do not fetch MathJax and the widget manager')
    a = ap.parse_args(argv)
    sys.path.insert(0, str(root))
    vendor(build / 'vendor', not a.no_npm)
    write_sources(build / 'src', a.execute)
    shutil.rmtree(build / 'html', ignore_errors=True)
    run = subprocess.run(
        [
            sys.executable,
            '-m',
            'sphinx',
            '-b',
            'html',
            '-E',
            '-q',
            '-W',
            '--keep-going',
            '-c',
            str(root / 'docs'),
            '-d',
            str(build / 'doctrees'),
            str(build / 'src'),
            str(build / 'html'),
        ],
        env=dict(os.environ, JEPA_LIT_VENDOR=str(build / 'vendor')),
    )
    if run.returncode:
        sys.exit(run.returncode)
    shutil.rmtree(a.out, ignore_errors=True)
    shutil.copytree(build / 'html', a.out)
    print(f'{len(list(a.out.glob("*.html")))} pages in {a.out}')


if __name__ == '__main__':
    main()

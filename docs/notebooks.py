"What the tools here share: which notebooks there are, which cells run, how they are executed and cleaned"

import base64, hashlib, io, json, os, re, sys
from itertools import zip_longest
from pathlib import Path

os.environ.setdefault('JUPYTER_PLATFORM_DIRS', '1')
import nbformat
from nbclient import NotebookClient
from execnb.nbio import dict2nb, write_nb
from nbdev.clean import clean_nb
from nbdev.config import get_config
from nbdev.process import extract_directives

root = Path(__file__).resolve().parent.parent
cfg = get_config(path=root)
stamps = root / 'docs/outputs.json'


def chapters(names=()):
    "The notebooks in reading order: the index, then by number; or those named (`20_collapse`, `collapse`, a path)"
    nbs = sorted(cfg.nbs_path.glob('[!._]*.ipynb'), key=lambda p: (p.stem != 'index', p.name))
    if not names:
        return nbs
    found = [
        [
            p
            for p in nbs
            if n in (p.stem, re.sub(r'^\d+_', '', p.stem), p.name) or Path(n).resolve() == p.resolve()
        ]
        for n in names
    ]
    for n, f in zip(names, found):
        if not f:
            sys.exit(
                f'no notebook {n!r} in {cfg.nbs_path.name}/; there are: {", ".join(p.stem for p in nbs)}'
            )
    return [f[0] for f in found]


def read(path):
    return nbformat.read(path, 4)


def directives(cell):
    "`#| name: value` lines at the head of a code cell, as a dict of name to text"
    if cell.cell_type != 'code':
        return {}
    found = extract_directives(
        dict2nb(dict(cells=[dict(cell)], metadata={}, nbformat=4, nbformat_minor=5)).cells[0], remove=False
    )
    return {k.rstrip(':'): ' '.join(v) for k, v in found.items()}


def skipped(cell, flags=()):
    "Whether `nbdev_test` would leave this cell out"
    d = directives(cell)
    return (
        d.get('eval', '').lower() == 'false'
        or 'nbdev_export(' in cell.source
        or bool((set(cfg.tst_flags.split()) - set(flags)) & d.keys())
    )


def code_hash(nb):
    "One digest of a notebook's code, to tell whether its stored outputs belong to it"
    return hashlib.sha256(
        '\n\0'.join(c.source for c in nb.cells if c.cell_type == 'code').encode()
    ).hexdigest()


class Client(NotebookClient):
    "Runs a notebook in a fresh kernel, skipping what `nbdev_test` skips (those cells keep their outputs)"

    flags = ()

    async def async_execute_cell(self, cell, cell_index, **kw):
        return cell if skipped(cell, self.flags) else await super().async_execute_cell(cell, cell_index, **kw)


def execute(nb, flags=(), timeout=600):
    "Executes `nb` in place, beside its neighbors, with the library of this checkout"
    c = Client(
        nb,
        timeout=timeout,
        kernel_name='python3',
        extra_arguments=['--IPKernelApp.log_level=40'],
        resources={'metadata': {'path': str(cfg.nbs_path)}},
    )
    c.flags = flags
    env = dict(
        os.environ,
        MPLBACKEND='module://matplotlib_inline.backend_inline',
        PYTHONPATH=os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')])),
    )
    c.execute(env=env)
    return nb


_progress, _ansi, _address = (
    re.compile(r'^[^\n]*\r(?!\n)', re.M),
    re.compile(r'\x1b\[[0-9;?]*[A-Za-z]'),
    re.compile(r' at 0x[0-9a-fA-F]+|\b0x[0-9a-fA-F]{8,}'),
)


def _picture(b64):
    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(b64))).convert('RGB')


def _pixels(im):
    import numpy as np

    return np.asarray(im.convert('RGB'), dtype=int)


def _same_picture(a, b):
    "Whether two base64 PNGs differ by no more than the eye would see"
    a, b = _pixels(_picture(a)), _pixels(_picture(b))
    return a.shape == b.shape and abs(a - b).mean() < 0.1 and abs(a - b).max() < 48


def _smaller(b64, limit=30_000):
    "A large PNG again in the smallest of three ways: as it is without transparency, in gray, in 256 well-chosen colors"
    if len(b64) < limit:
        return b64
    im, tries = _picture(b64), [base64.b64decode(b64)]
    for o in (im, im.convert('L'), im.quantize(256, kmeans=2)):
        if abs(_pixels(o) - _pixels(im)).mean() > 1.5:
            continue
        o.save(f := io.BytesIO(), 'PNG', optimize=True)
        tries.append(f.getvalue())
    return base64.b64encode(min(tries, key=len)).decode()


def plain(s):
    return _ansi.sub('', s)


def _clean_text(s):
    return _address.sub('', plain(_progress.sub('', s)))


def _stable_widgets(nb):
    "Numbers widget models in order, and drops the state of those that no output shows"
    state = (
        nb.metadata.get('widgets', {}).get('application/vnd.jupyter.widget-state+json', {}).get('state', {})
    )
    views = [
        o.data['application/vnd.jupyter.widget-view+json']['model_id']
        for c in nb.cells
        for o in c.get('outputs', [])
        if 'application/vnd.jupyter.widget-view+json' in o.get('data', {})
    ]
    if not views:
        nb.metadata.pop('widgets', None)
        return nb
    order, text = [], json.dumps(state)

    def visit(i):
        if i in order or i not in state:
            return
        order.append(i)
        for j in re.findall(r'IPY_MODEL_(\w+)', json.dumps(state[i])):
            visit(j)

    for i in views:
        visit(i)
    nb.metadata['widgets']['application/vnd.jupyter.widget-state+json']['state'] = {
        i: state[i] for i in order
    }
    text = json.dumps(nb)
    for n, i in enumerate(order):
        text = text.replace(i, f'{n:032x}')
    return nbformat.reads(text, 4)


def clean(nb, old=None):
    "Leaves what a reader wants and nothing that changes from run to run; gives the lines of stderr it dropped"
    dropped, before = (
        [],
        {c.id: c.get('outputs', []) for c in (old.cells if old else []) if c.cell_type == 'code'},
    )
    for c in nb.cells:
        if c.cell_type != 'code':
            continue
        kept = []
        for o in c.outputs:
            if o.get('name') == 'stderr':
                dropped += o.text.strip().splitlines()
                continue
            if 'text' in o:
                o.text = _clean_text(o.text)
            if o.get('text') == '':
                continue
            if kept and o.output_type == 'stream' == kept[-1].output_type and o.name == kept[-1].name:
                kept[-1].text += o.text
                continue
            for k, v in o.get('data', {}).items():
                if isinstance(v, str) and k.startswith('text/'):
                    o.data[k] = _clean_text(v)
            kept.append(o)
        for o, b in zip_longest(kept, before.get(c.id, [])[: len(kept)], fillvalue={}):
            a, b = (x.get('data', {}).get('image/png') for x in (o, b))
            if a:
                a = o.data['image/png'] = _smaller(a.strip())
            if a and b and len(b) <= 1.1 * len(a) and _same_picture(a, b):
                o.data['image/png'] = b
        c.outputs = kept
    return _stable_widgets(nb), dropped


def save(nb, path):
    "Writes as `nbdev_clean` would leave it"
    nb.metadata = {k: v for k, v in nb.metadata.items() if k in ('kernelspec', 'widgets')}
    nb.metadata['kernelspec'] = dict(display_name='python3', language='python', name='python3')
    d = json.loads(nbformat.writes(nb))
    clean_nb(
        d,
        allowed_metadata_keys=cfg.get('allowed_metadata_keys').split(),
        allowed_cell_metadata_keys=cfg.get('allowed_cell_metadata_keys').split(),
        clean_ids=cfg.clean_ids,
    )
    write_nb(d, path)


def record(path, nb):
    "Notes in outputs.json which code the stored outputs came from"
    with open(stamps, 'a+', encoding='utf-8') as f:
        try:
            import fcntl

            fcntl.flock(f, fcntl.LOCK_EX)  # several refreshes at once
        except ImportError:
            pass
        f.seek(0)
        d = json.loads(f.read() or '{}')
        d = {k: v for k, v in d.items() if (cfg.nbs_path / f'{k}.ipynb').exists()} | {
            path.stem: code_hash(nb)
        }
        f.seek(0)
        f.truncate()
        f.write(json.dumps(dict(sorted(d.items())), indent=1) + '\n')


def stale(path):
    "Whether a notebook's code has changed since its outputs were stored"
    return (json.loads(stamps.read_text()) if stamps.exists() else {}).get(path.stem) != code_hash(read(path))

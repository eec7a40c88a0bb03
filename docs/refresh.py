"""Executes notebooks and stores their outputs, cleaned, in nbs/.

python docs/refresh.py                 # all, in order
python docs/refresh.py 20_collapse     # one (or several)
python docs/refresh.py --stale         # those whose code changed since
python docs/refresh.py --flags slow 38_lejepa
"""

import argparse, sys, time
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from notebooks import chapters, clean, execute, plain, read, record, save, stale

LIMIT = 400_000  # bytes a notebook


def cell_of(nb):
    "The cell that failed: the one whose outputs hold the error"
    return next(
        (i for i, c in enumerate(nb.cells) if any(o.output_type == 'error' for o in c.get('outputs', []))),
        None,
    )


def refresh(path, flags=(), timeout=600):
    "Returns what went wrong, or None"
    old, nb, t = read(path), read(path), time.time()
    try:
        execute(nb, flags, timeout)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as e:
        i = cell_of(nb)
        print(
            f'\n{path.name}: cell {"?" if i is None else i} failed'
            + ('' if i is None else f'\n\n{nb.cells[i].source}\n'),
            file=sys.stderr,
        )
        text = (
            '\n'.join(next(o for o in nb.cells[i].outputs if o.output_type == 'error').traceback)
            if i is not None
            else str(e)
        )
        print(text if sys.stderr.isatty() else plain(text), file=sys.stderr)
        return f'{path.name} (cell {i})'
    secs = time.time() - t
    nb, dropped = clean(nb, old)
    save(nb, path)
    record(path, nb)
    size = path.stat().st_size
    print(
        f'{path.name:24} {secs:6.1f} s {size / 1000:7.1f} kB'
        + (f'  ABOVE {LIMIT // 1000} kB' if size > LIMIT else '')
        + (
            f'  dropped {len(dropped)} lines of stderr: {next((l for l in dropped if "Warning" in l), dropped[0])[-100:]}'
            if dropped
            else ''
        ),
        flush=True,
    )


if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('names', nargs='*', help='notebooks, by name; all if none')
    ap.add_argument('--flags', default='', help='run cells marked with these flags too')
    ap.add_argument(
        '--stale',
        action='store_true',
        help='only notebooks whose code changed since their outputs were stored',
    )
    ap.add_argument('--timeout', type=int, default=600, help='seconds a cell may take')
    a = ap.parse_args()
    nbs = [p for p in chapters(a.names) if not a.stale or stale(p)]
    failed = [f for p in nbs if (f := refresh(p, a.flags.split(), a.timeout))]
    if failed:
        sys.exit(f'failed: {", ".join(failed)}; their outputs were left as they were')

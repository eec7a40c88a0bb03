"""README.md from nbs/index.ipynb.

python docs/readme.py            # writes it
python docs/readme.py --check    # fails if it is not current
"""

import re, sys
from notebooks import cfg, directives, read, root

hidden = {'hide', 'default_exp', 'export', 'exporti'}


def fence(text, lang=''):
    return f'```{lang}\n{text}\n```'


def result(o):
    "An output as Markdown; pictures stay in the notebook"
    data = o.get('data', {})
    if 'text/markdown' in data:
        return data['text/markdown'].strip()
    text = o.get('text') or ('' if any(k.startswith('image/') for k in data) else data.get('text/plain', ''))
    return fence(text.rstrip()) if text.strip() else ''


def render():
    out = ['<!-- Made from nbs/index.ipynb by docs/readme.py. Edit that notebook. -->']
    for c in read(cfg.nbs_path / 'index.ipynb').cells:
        d, src = directives(c), c.source.strip()
        if c.cell_type == 'markdown':
            out.append(re.sub(r'\]\((?:\./)?([\w-]+\.ipynb)', rf']({cfg.nbs_path.name}/\1', src))
            continue
        if c.cell_type != 'code' or d.keys() & hidden or d.get('include') == 'false':
            continue
        code = re.sub(r'^#\|.*\n?', '', src, flags=re.M).strip()
        if code and d.get('echo') != 'false':
            out.append(fence(code, 'python'))
        if d.get('output') != 'false':
            out += [result(o) for o in c.outputs]
    return '\n\n'.join(o for o in out if o) + '\n'


if __name__ == '__main__':
    f, text = root / 'README.md', render()
    if '--check' not in sys.argv:
        f.write_text(text, encoding='utf-8')
    elif not f.exists() or f.read_text(encoding='utf-8') != text:
        sys.exit('README.md is not what nbs/index.ipynb says: run python docs/readme.py')

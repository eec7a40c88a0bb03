"""README.md from nbs/index.ipynb.

python docs/readme.py            # writes it
python docs/readme.py --check    # fails if it is not current

The index's table of chapters is made from their own questions, and the picture of the clouds from `00_sixty_lines`.
"""

import base64, re, sys
from notebooks import cfg, chapters, directives, read, root, save

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


def question(path):
    "What a page asks, from its opening"
    opening = '\n'.join(c.source for c in read(path).cells[:3])
    asked = re.search(r'\*Question:?\*:? *(.+?) *(?:<br>)?$', opening, re.M)
    if not asked:
        sys.exit(f'{path.name}: no *Question:* in its opening')
    return asked[1][0].upper() + asked[1][1:]


def fill():
    "The index with the table of chapters as they are"
    nb = read(cfg.nbs_path / 'index.ipynb')
    rows = [f'| [{p.stem}]({p.name}) | {question(p)} |' for p in chapters() if p.stem != 'index']
    table = '\n'.join(['| chapter | question |', '|---|---|', *rows])
    for c in nb.cells:
        if c.cell_type == 'markdown':
            c.source = re.sub(r'\| chapter \| question \|\n(\|.*\n?)+', lambda _: table + '\n', c.source)
    return nb


def clouds():
    "The picture of the embeddings, stored in 00_sixty_lines"
    for c in read(cfg.nbs_path / '00_sixty_lines.ipynb').cells:
        for o in c.get('outputs', []) if 'clouds' in c.source else []:
            if 'image/png' in o.get('data', {}):
                return base64.b64decode(o.data['image/png'])
    sys.exit('00_sixty_lines has no stored picture of the clouds: python docs/refresh.py 00_sixty_lines')


def render(nb):
    out = ['<!-- Made from nbs/index.ipynb by docs/readme.py. Edit that notebook. -->']
    for c in nb.cells:
        d, src = directives(c), c.source.strip()
        if c.cell_type == 'markdown':
            out.append(
                re.sub(r'\]\((?:\./)?([\w-]+\.ipynb)', rf']({cfg.nbs_path.name}/\1', src).replace(
                    '"../docs/', '"docs/'
                )
            )
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
    f, index, nb = root / 'README.md', cfg.nbs_path / 'index.ipynb', fill()
    text = render(nb)
    if '--check' not in sys.argv:
        f.write_text(text, encoding='utf-8')
        (root / 'docs/_static/clouds.png').write_bytes(clouds())
        if nb != read(index):
            save(nb, index)
    elif nb != read(index) or not f.exists() or f.read_text(encoding='utf-8') != text:
        sys.exit('README.md is not what the notebooks say: run python docs/readme.py')

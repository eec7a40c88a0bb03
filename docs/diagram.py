"""The front page's diagram of both methods: one panel each, light and dark, as SVG in docs/_static.

python docs/diagram.py
"""

import math
from pathlib import Path
from sklearn.datasets import load_digits

static = Path(__file__).resolve().parent / '_static'
THEMES = {
    'light': dict(
        ink='#1f2328', soft='#59636e', paper='#ffffff', box='#eef2f7', a='#1f6feb', b='#c2410c', c='#1a7f37'
    ),
    'dark': dict(
        ink='#e6edf3', soft='#9da7b3', paper='#161b22', box='#262d36', a='#79b8ff', b='#ffa657', c='#56d364'
    ),
}
SIX = load_digits().images[6] / 16  # a handwritten six, 8 x 8
HIDDEN = {(r, c) for r in (1, 2) for c in (2, 3)}  # the hidden block, in patches of 2 x 2 pixels


def text(x, y, s, fill='ink', size=14, anchor='middle', weight='normal'):
    return (
        f'<text x="{x}" y="{y}" fill="{{{fill}}}" font-size="{size}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{s}</text>'
    )


def box(x, y, w, h, s, line='soft', dash=''):
    frame = f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="8" fill="{{box}}" stroke="{{{line}}}"'
    return f'{frame} stroke-width="1.5" stroke-dasharray="{dash}"/>' + text(x + w / 2, y + h / 2 + 5, s)


def arrow(*points, color='ink', dash=''):
    "A path through the points, with a head at its end"
    (x0, y0), (x1, y1) = points[-2:]
    turn = math.degrees(math.atan2(y1 - y0, x1 - x0))
    line = ' '.join(f'{x},{y}' for x, y in points)
    return (
        f'<polyline points="{line}" fill="none" stroke="{{{color}}}" stroke-width="1.8" stroke-dasharray="{dash}"/>'
        f'<path d="M0 0L-8 -4.5L-8 4.5Z" fill="{{{color}}}" transform="translate({x1} {y1}) rotate({turn:.0f})"/>'
    )


def digit(x, y, side, show=lambda patch: True, turn=0, color='ink'):
    "The six, pixel by pixel; patches that are not shown are hatched out"
    s, out = side / 8, []
    for r in range(8):
        for c in range(8):
            seen = show((r // 2, c // 2))
            fill, opacity = (color, SIX[r, c]) if seen else ('soft', 0.35)
            if opacity > 0.02:
                place = f'x="{c * s:.2f}" y="{r * s:.2f}" width="{s:.2f}" height="{s:.2f}"'
                out.append(f'<rect {place} fill="{{{fill}}}" fill-opacity="{opacity:.2f}"/>')
    frame = f'<rect width="{side}" height="{side}" fill="none" stroke="{{soft}}"/>'
    middle = side / 2
    return f'<g transform="translate({x} {y}) rotate({turn} {middle} {middle})">{frame}{"".join(out)}</g>'


def dots(x, y, color, n=4):
    "An embedding, as a row of numbers would be drawn"
    return ''.join(
        f'<circle cx="{x + 13 * (i - (n - 1) / 2):.1f}" cy="{y}" r="5" fill="{{{color}}}" '
        f'fill-opacity="{(0.9, 0.35, 0.65, 0.2)[i % 4]}" stroke="{{{color}}}"/>'
        for i in range(n)
    )


def ijepa():
    return [
        text(190, 26, 'I-JEPA', size=19, weight='bold'),
        text(92, 54, 'visible patches', 'a'),
        text(288, 54, 'the whole image', 'b'),
        digit(60, 64, 64, lambda p: p not in HIDDEN),
        digit(256, 64, 64),
        arrow((92, 132), (92, 152), color='a'),
        arrow((288, 132), (288, 152), color='b'),
        box(32, 154, 120, 36, 'encoder', 'a'),
        box(224, 154, 128, 36, 'target encoder', 'b', '5 4'),
        arrow((154, 172), (222, 172), color='soft', dash='4 3'),
        text(188, 163, 'average', 'soft', 13),
        arrow((92, 192), (92, 212), color='a'),
        box(32, 214, 120, 36, 'predictor', 'a'),
        text(92, 267, 'asked: what is there?', 'soft', 13),
        arrow((92, 274), (92, 292), color='a'),
        dots(92, 303, 'a'),
        arrow((288, 192), (288, 292), color='b'),
        '<path d="M274 236H302M274 243H302" stroke="{c}" stroke-width="3"/>',
        text(268, 244, 'no gradient', 'c', 13, 'end'),
        dots(288, 303, 'b'),
        text(288, 328, 'of the hidden block', 'soft', 13),
        text(92, 328, 'the guess', 'soft', 13),
        arrow((136, 303), (160, 303)),
        arrow((244, 303), (220, 303)),
        text(190, 308, 'equal?'),
        text(190, 364, 'Against collapse: targets from a slow', 'c'),
        text(190, 382, 'average that gets no gradient', 'c'),
    ]


def lejepa():
    views = [(28, -14), (116, 10), (204, -5), (292, 18)]
    cloud = [(0, 0), (9, -6), (-10, 5), (4, 11), (-6, -11), (15, 5), (-16, -4), (-3, 18), (7, -17), (20, -8)]
    cloud += [(-20, 10), (13, 15), (-13, -17), (24, 7), (-25, -8)]
    out = [
        text(190, 26, 'LeJEPA', size=19, weight='bold'),
        text(190, 54, 'views: altered copies of one image', 'a'),
    ]
    for i, (x, turn) in enumerate(views):
        out += [digit(x + 6, 68, 48, turn=turn), arrow((x + 30, 130), (x + 30, 152), color='a')]
    out += [
        box(32, 154, 316, 36, 'one encoder for all', 'a'),
        arrow((190, 192), (190, 212), color='a'),
        box(92, 214, 196, 36, 'projector', 'a'),
        arrow((150, 252), (96, 270), color='a'),
        arrow((230, 252), (284, 270), color='c'),
    ]
    star = (96, 297)
    for x, y in ((-34, -12), (26, -17), (-18, 16), (33, 12)):
        p = (star[0] + x, star[1] + y)
        out.append(arrow(p, (star[0] + 0.3 * x, star[1] + 0.3 * y), color='soft'))
        out.append(f'<circle cx="{p[0]}" cy="{p[1]}" r="4.5" fill="{{a}}"/>')
    out.append(f'<circle cx="{star[0]}" cy="{star[1]}" r="5" fill="{{b}}"/>')
    for r in (13, 25):
        out.append(f'<circle cx="284" cy="298" r="{r}" fill="none" stroke="{{c}}" stroke-dasharray="3 3"/>')
    out += [f'<circle cx="{284 + x}" cy="{298 + y}" r="2.6" fill="{{a}}"/>' for x, y in cloud]
    return out + [
        text(96, 337, 'each view to the mean', 'soft', 13),
        text(284, 337, 'all images: Gaussian', 'soft', 13),
        text(190, 364, 'Against collapse: SIGReg, a loss that is low', 'c'),
        text(190, 382, 'only if the embeddings form a Gaussian', 'c'),
    ]


def svg(parts, theme):
    body = ''.join(parts)
    for name, color in THEMES[theme].items():
        body = body.replace(f'{{{name}}}', color)
    paper = f'<rect width="380" height="396" rx="12" fill="{THEMES[theme]["paper"]}"/>'
    font = 'system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 380 396" width="380" height="396" '
        f'font-family="{font}">{paper}{body}</svg>\n'
    )


if __name__ == '__main__':
    for name, parts in (('ijepa', ijepa()), ('lejepa', lejepa())):
        for theme in THEMES:
            (static / f'{name}-{theme}.svg').write_text(svg(parts, theme), encoding='utf-8')

"What the site says of an exported name: its signature, docstring and a table of its parameters, as MyST Markdown"

import dataclasses, inspect, re, types
from functools import cached_property
from fastcore.docments import docments

empty, K = inspect.Parameter.empty, inspect.Parameter


def show_type(anno):
    "An annotation as one would write it, without module names"
    s = anno.__name__ if inspect.isclass(anno) and not isinstance(anno, types.GenericAlias) else str(anno)
    return re.sub(r'\b(?:[A-Za-z_]\w*\.)+(?=\w)', '', s)


def show_default(v):
    "A default value on one line; functions and classes by name"
    return getattr(v, '__name__', None) or re.sub(r'\s+', ' ', re.sub(r' at 0x\w+', '', repr(v)))


def signature(f, bound=False):
    "`(n: int, d: int = 3) -> Tensor`, or nothing where Python cannot tell"
    try:
        sig = inspect.signature(f)
    except (TypeError, ValueError):
        return ''
    ps, out, starred = list(sig.parameters.values())[int(bound) :], [], False
    for i, p in enumerate(ps):
        if p.kind == K.KEYWORD_ONLY and not starred:
            out.append('*')
        starred = starred or p.kind in (K.KEYWORD_ONLY, K.VAR_POSITIONAL)
        name = {K.VAR_POSITIONAL: '*', K.VAR_KEYWORD: '**'}.get(p.kind, '') + p.name
        anno = '' if p.annotation is empty else f': {show_type(p.annotation)}'
        out.append(
            name
            + anno
            + (
                ''
                if p.default is empty
                else f' = {show_default(p.default)}'
                if anno
                else f'={show_default(p.default)}'
            )
        )
        if p.kind == K.POSITIONAL_ONLY and (i + 1 == len(ps) or ps[i + 1].kind != K.POSITIONAL_ONLY):
            out.append('/')
    ret = sig.return_annotation
    return f'({", ".join(out)})' + (
        '' if ret in (empty, None) or inspect.isclass(f) else f' -> {show_type(ret)}'
    )


def table(f):
    "A table of parameters, where the source comments on any"
    try:
        docs = docments(f, full=True)
    except Exception:
        return ''  # no source to read (some decorated objects)
    docs = {k: d for k, d in docs.items() if k not in ('self', 'cls')}
    if not any(d.docment for d in docs.values()):
        return ''

    def cell(s):
        return re.sub(r'\s+', ' ', str(s)).replace('|', r'\|').strip()

    def plain(s):
        return ''.join(
            t if i % 2 else re.sub(r'([*$<])', r'\\\1', t)
            for i, t in enumerate(re.split(r'(`[^`]*`)', cell(s or '')))
        )

    def code(v, show):
        return (
            ''
            if v is empty or v is dataclasses.MISSING or v in (None, type(None)) and show is show_type
            else f'`{cell(show(v))}`'
        )

    rows = [
        f'| **{k}** | {code(d.anno, show_type)} | {code(d.default, show_default)} | {plain(d.docment)} |'
        for k, d in docs.items()
        if k != 'return'
    ]
    r = docs.get('return')
    if r and r.docment:
        rows.append(f'| *returns* | {code(r.anno, show_type)} | | {plain(r.docment)} |')
    return '\n'.join(['| | type | default | |', '|:--|:--|:--|:--|', *rows])


def underlying(v):
    "The function behind a method, property or class method"
    for kind, attr in (
        (classmethod, '__func__'),
        (staticmethod, '__func__'),
        (property, 'fget'),
        (cached_property, 'func'),
    ):
        if isinstance(v, kind):
            return getattr(v, attr)
    return v


def described(cls):
    "Names of the public methods and properties that a class itself defines, with a docstring"
    return [
        k
        for k, v in vars(cls).items()
        if k[0] != '_'
        and inspect.isfunction(f := underlying(v))
        and f.__module__ == cls.__module__
        and f.__doc__
    ]


def doc(f):
    "Its own docstring: not its parent's, nor the one `dataclass` makes up"
    d = vars(f).get('__doc__') if inspect.isclass(f) else f.__doc__
    return '' if not d or inspect.isclass(f) and d.startswith(f'{f.__name__}(') else inspect.cleandoc(d)


def entry(name, v, skip=(), source='', method=False, comment='', colons=5):
    "A directive of Sphinx's Python domain for `v`; a class's methods, less those in `skip`, inside it; `comment` describes a constant"
    f, options = underlying(v), [f':{k.__name__}:' for k in (classmethod, staticmethod) if isinstance(v, k)]
    kind = (
        'class'
        if inspect.isclass(f)
        else 'property'
        if isinstance(v, (property, cached_property))
        else 'method'
        if method
        else 'function'
        if inspect.isroutine(f) or hasattr(f, '__wrapped__')
        else 'data'
    )
    call = kind in ('class', 'method', 'function')
    body = [
        f'[source]({source}){{.api-source}}' if source else '',
        doc(f) if kind != 'data' else comment,
        table(f) if call else '',
    ]
    if kind == 'class':
        body += [entry(k, vars(f)[k], method=True, colons=colons - 1) for k in described(f) if k not in skip]
    head = name + (signature(f, bound=method and not isinstance(v, staticmethod)) if call else '')
    return '\n'.join(
        [
            ':' * colons + f'{{py:{kind}}} {head}',
            *options,
            '',
            '\n\n'.join(b for b in body if b),
            ':' * colons,
        ]
    )

"The site: built once, then read as files, as a server's pages, and in a browser"

import functools, http.server, importlib, re, shutil, struct, subprocess, sys, tempfile, threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag
import pytest
from conftest import need, root, tool

sys.path.insert(0, str(root / 'docs'))
from build import REFERENCE
from notebooks import cfg, chapters, directives, read

books = chapters()


def page(p):
    return re.sub(r'^\d+_', '', p.stem) + '.html'


each = pytest.mark.parametrize('path', books, ids=lambda p: p.stem)


class Page(HTMLParser):
    "Tags with their attributes, ids, and text by tag"

    def __init__(self, path):
        super().__init__()
        self.tags, self.ids, self.h1, self._in = [], set(), '', None
        self.text = path.read_text(encoding='utf-8')
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.tags.append((tag, a))
        if 'id' in a:
            self.ids.add(a['id'])
        if tag == 'h1':
            self._in = 'h1'
        elif a.get('class') == 'headerlink':
            self._in = None

    def handle_endtag(self, tag):
        if tag == 'h1':
            self._in = None

    def handle_data(self, data):
        if self._in:
            self.h1 += data

    def all(self, tag):
        return [a for t, a in self.tags if t == tag]


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp('site') / 'html'
    r = subprocess.run(
        [sys.executable, root / 'docs/build.py', '--out', out], cwd=root, capture_output=True, text=True
    )
    assert r.returncode == 0, f'docs/build.py failed:\n{r.stdout[-3000:]}\n{r.stderr[-6000:]}'
    return out


@pytest.fixture(scope='module')
def pages(site):
    return {p.name: Page(p) for p in site.glob('*.html')}


@each
def test_page_has_its_title(path, pages):
    title = re.search(r'^# (.+)$', read(path).cells[0].source, re.M)[1]
    assert re.sub(r'\W', '', pages[page(path)].h1) == re.sub(r'\W', '', title)


@each
def test_page_has_its_figures(path, pages):
    "As many as the notebook holds in cells that are shown, each with a description"
    shown = [
        c
        for c in read(path).cells
        if c.cell_type == 'code'
        and not directives(c).keys() & {'hide', 'export', 'exporti', 'hide_output'}
        and directives(c).get('include') != 'false'
        and directives(c).get('output') != 'false'
    ]
    n = sum(
        o.get('data', {}).keys() & {'image/png', 'image/svg+xml', 'image/jpeg'} != set()
        for c in shown
        for o in c.outputs
    )
    imgs = [a for a in pages[page(path)].all('img') if a['src'].startswith('_images/')]
    assert len(imgs) == n and all(len(a.get('alt', '')) > 3 for a in imgs)


@each
def test_page_has_its_api(path, pages):
    mod = next((d['default_exp'] for c in read(path).cells if 'default_exp' in (d := directives(c))), None)
    if not mod or not (root / f'jepa_lit/{mod}.py').exists():
        return
    names = importlib.import_module(f'jepa_lit.{mod}').__all__
    missing = [n for n in names if f'jepa_lit.{mod}.{n}' not in pages[page(path)].ids]
    assert names and not missing, f'no entry for {missing}'


def test_sidebar_is_in_reading_order(pages):
    links = re.findall(
        r'<li class="toctree-l1[^"]*"><a class="[^"]*" href="([^"#]+)"', pages['index.html'].text
    )
    expected = [page(p) for p in books if p.stem != 'index'] + [f'{name}.html' for name in REFERENCE]
    assert list(dict.fromkeys(links)) == expected


def test_links_lead_somewhere(site, pages):
    for name, p in pages.items():
        for a in p.all('a') + p.all('link') + p.all('img') + p.all('script'):
            url = a.get('href') or a.get('src') or ''
            if re.match(r'(https?|mailto|data|javascript):', url) or not url:
                continue
            file, anchor = urldefrag(url)
            file = unquote(file.split('?')[0])
            assert not file or (site / file).exists(), f'{name} links to {url}'
            if anchor and (not file or file.endswith('.html')):
                assert anchor in pages[file or name].ids, f'{name} links to {url}'


def test_nothing_comes_from_elsewhere(site, pages):
    "Scripts, styles, fonts and pictures are the site's own"
    for name, p in pages.items():
        for tag, a in p.tags:
            if tag in ('script', 'img', 'iframe', 'source', 'link'):
                assert not re.match(r'(https?:)?//', a.get('src') or a.get('href') or ''), (
                    f'{name}: {tag} {a}'
                )
    for f in site.rglob('*.css'):
        assert not re.search(r'(url\(|@import)\s*["\']?(https?:)?//', f.read_text(encoding='utf-8')), f


def test_reference_pages(pages):
    "A formula for each relative, a term for each word, and prose that names a paper links to it"
    assert all(pages[f'{name}.html'].h1 for name in REFERENCE)
    assert pages['family.html'].text.count('class="math notranslate nohighlight"') >= 7
    assert {'cite-assran2023', 'cite-balestriero2025', 'cite-epps1983'} <= pages['references.html'].ids
    linked = [a.get('href') for a in pages['family.html'].all('a')]
    assert {'references.html#cite-he2022', 'references.html#cite-maes2026'} <= set(linked)
    assert 'term-collapse' in pages['glossary.html'].ids


def test_front_page_has_both_diagrams(pages):
    images = [(a['src'], a.get('class'), len(a.get('alt', ''))) for a in pages['index.html'].all('img')]
    for method in ('ijepa', 'lejepa'):
        for theme in ('light', 'dark'):
            (found,) = [i for i in images if i[0] == f'_static/{method}-{theme}.svg']
            assert found[1] == f'only-{theme}' and found[2] > 40


def test_search_index(site):
    index = (site / 'searchindex.js').read_text(encoding='utf-8')
    assert 'Search.setIndex' in index and all(f'"{page(p)[:-5]}"' in index for p in books)


def test_formulas_and_widgets_travel_along(site):
    need('npm')
    assert (site / '_static/tex-svg.js').stat().st_size > 1e6 and (
        site / '_static/embed.js'
    ).stat().st_size > 1e5


class Quiet(http.server.SimpleHTTPRequestHandler):
    missing = []

    def log_message(self, *a):
        pass

    def send_error(self, code, *a, **k):
        self.missing.append(self.path)
        super().send_error(code, *a, **k)


@pytest.fixture(scope='module')
def served(site):
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()


def browse(url, *how):
    "The page as a browser leaves it, and what its console said; no name but this machine's resolves"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        return subprocess.run(
            [
                need('chromium'),
                '--headless',
                '--no-sandbox',
                '--disable-gpu',
                '--disable-dev-shm-usage',
                '--disable-background-networking',
                '--no-first-run',
                '--disable-sync',
                '--disable-component-update',
                '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1',
                f'--user-data-dir={home}',
                '--window-size=1200,1600',
                '--virtual-time-budget=15000',
                '--enable-logging=stderr',
                *how,
                url,
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.mark.parametrize('path', sorted({books[0], books[len(books) // 2], books[-1]}), ids=lambda p: p.stem)
def test_page_in_a_browser(path, served):
    Quiet.missing.clear()
    r = browse(served + page(path), '--dump-dom')
    errors = [
        l
        for l in r.stderr.splitlines()
        if 'CONSOLE' in l and re.search(r'error|fail|refused|not defined', l, re.I) and 'favicon' not in l
    ]
    assert '<h1' in r.stdout and not errors, errors
    assert not [m for m in Quiet.missing if 'favicon' not in m]
    if 'class="math' in r.stdout and tool('npm'):
        assert '<mjx-container' in r.stdout, 'formulas are not drawn'


def test_search_in_a_browser(served):
    word = page(books[-1])[:-5]
    r = browse(f'{served}search.html?q={word}', '--dump-dom')
    assert re.search(rf'<li[^>]*>\s*<a href="{word}\.html', r.stdout), 'the search page finds nothing'


def test_looks(served, tmp_path):
    "A picture of a page, of the size asked for and not blank"
    browse(served + page(books[-1]), f'--screenshot={tmp_path}/page.png')
    png = (tmp_path / 'page.png').read_bytes()
    assert struct.unpack('>II', png[16:24]) == (1200, 1600) and len(png) > 20_000

"Sphinx's settings. `docs/build.py` runs it and says where MathJax and the widget manager are"

import os
from configparser import ConfigParser
from pathlib import Path

here = Path(__file__).resolve().parent
ini = ConfigParser(delimiters=['='])
ini.read(here.parent / 'settings.ini', encoding='utf-8')
ini = ini['DEFAULT']
project, author, copyright, release = ini['lib_name'], ini['author'], ini['copyright'], ini['version']
html_title = project

extensions = ['myst_nb', 'sphinx_copybutton', 'sphinxcontrib.bibtex']
bibtex_bibfiles = [str(here / 'pages/references.bib')]
bibtex_cite_id = 'cite-{key}'
myst_enable_extensions = ['dollarmath', 'amsmath', 'colon_fence', 'attrs_inline']
myst_heading_anchors = 4
nb_execution_mode = 'off'  # build.py does that
nb_merge_streams = True
nb_render_markdown_format = 'myst'
suppress_warnings = ['myst.header', 'mystnb.unknown_mime_type']
add_module_names = False
toc_object_entries_show_parents = 'hide'
python_maximum_signature_line_length = 88
copybutton_exclude = '.linenos, .gp, .go'

html_theme = 'furo'
html_theme_options = {
    'source_repository': ini['git_url'],
    'source_branch': ini['branch'],
    'source_directory': 'nbs/',
    'top_of_page_buttons': [],
}
html_static_path = [str(here / '_static'), os.environ['JEPA_LIT_VENDOR']]
html_css_files = ['custom.css']
html_copy_source = False
html_show_sourcelink = False
mathjax_path = 'tex-svg.js'  # from npm, so that pages need no network
mathjax3_config = {'options': {'enableMenu': False}}
nb_ipywidgets_js = {'embed.js': {}}

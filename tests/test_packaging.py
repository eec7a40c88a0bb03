"What a stranger gets: a wheel without the tools, a library that is its notebooks, a README that is current"

import configparser, os, re, shutil, subprocess, sys, tarfile, zipfile
from email.parser import Parser
import pytest
from conftest import root


def run(*cmd, cwd=root, **env):
    r = subprocess.run(
        [str(c) for c in cmd],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != 'IN_TEST'} | env,
    )
    assert r.returncode == 0, f'{" ".join(map(str, cmd))}\n{r.stdout[-4000:]}\n{r.stderr[-4000:]}'
    return r.stdout


def copy(tmp, *names):
    for n in names:
        if (root / n).is_dir():
            shutil.copytree(
                root / n, tmp / n, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
            )
        elif (root / n).exists():
            shutil.copy(root / n, tmp / n)
    return tmp


modules = sorted(p.name for p in (root / 'jepa_lit').glob('*.py'))
typing_files = ['__init__.pyi', 'py.typed']  # for type checkers; nobody generates them


@pytest.fixture(scope='module')
def dist(tmp_path_factory):
    "A source distribution, and the wheel built from it"
    tmp = copy(
        tmp_path_factory.mktemp('dist'),
        'pyproject.toml',
        'setup.py',
        'settings.ini',
        'MANIFEST.in',
        'README.md',
        'LICENSE',
        'CHANGELOG.md',
        'CONTRIBUTING.md',
        'nbs',
        'jepa_lit',
    )
    run(sys.executable, '-m', 'build', '--no-isolation', cwd=tmp)
    return tmp / 'dist'


@pytest.fixture(scope='module')
def wheel(dist):
    return next(dist.glob('*.whl'))


@pytest.fixture(scope='module')
def metadata(wheel):
    with zipfile.ZipFile(wheel) as z:
        return Parser().parsestr(z.read(next(n for n in z.namelist() if n.endswith('METADATA'))).decode())


def test_sdist(dist):
    with tarfile.open(next(dist.glob('*.tar.gz'))) as t:
        names = {n.split('/', 1)[1] for n in t.getnames() if '/' in n}
    library = {f'jepa_lit/{m}' for m in [*modules, *typing_files]}
    notebooks = {f'nbs/{p.name}' for p in (root / 'nbs').glob('*.ipynb')}
    assert {'settings.ini', 'setup.py', 'README.md', 'LICENSE'} | library | notebooks <= names


def test_twine_finds_nothing(dist):
    run(sys.executable, '-m', 'twine', 'check', '--strict', *dist.iterdir())


def test_wheel_holds_the_library_alone(wheel):
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
    assert sorted(n[9:] for n in names if n.startswith('jepa_lit/')) == sorted([*modules, *typing_files])
    assert all('.dist-info/' in n or n.startswith('jepa_lit/') for n in names)
    assert any(n.endswith('LICENSE') for n in names)


def test_wheel_needs_no_tools(metadata):
    needs = [
        re.match(r'[\w-]+', r)[0].lower() for r in metadata.get_all('Requires-Dist') if 'extra ==' not in r
    ]
    assert 'torch' in needs and not {
        'nbdev',
        'execnb',
        'ghapi',
        'beartype',
        'pytest',
        'sphinx',
        'ipykernel',
    } & set(needs)
    assert (
        metadata['Requires-Python'] == '>=3.10'
        and metadata['License-Expression' if 'License-Expression' in metadata else 'License'] == 'Apache-2.0'
    )


blocked = '''
import importlib, pkgutil, sys
from importlib.machinery import PathFinder
hidden, find = {'nbdev', 'fastcore', 'execnb', 'ghapi', 'beartype', 'pytest', 'nbclient', 'nbformat', 'sphinx', 'build', 'timm', 'transformers', 'pandas', 'pyarrow', 'datasets', 'dill', 'tensorboard'}, PathFinder.find_spec
PathFinder.find_spec = staticmethod(lambda name, path=None, target=None: None if name.split('.')[0] in hidden else find(name, path, target))
import jepa_lit
for m in pkgutil.iter_modules(jepa_lit.__path__): importlib.import_module(f'jepa_lit.{m.name}')
for s in sys.argv[1:]:
    mod, f = s.split(':')
    assert callable(getattr(importlib.import_module(mod), f))
print(jepa_lit.__file__)
'''


def test_wheel_imports_without_the_tools(wheel, tmp_path):
    "Installed by pip, in a Python that has what the wheel requires and cannot see what only development needs"
    run(
        sys.executable,
        '-m',
        'pip',
        'install',
        '--no-deps',
        '--no-index',
        '--quiet',
        '--disable-pip-version-check',
        '--target',
        tmp_path / 'lib',
        wheel,
    )
    ini = configparser.ConfigParser()
    ini.read(next((tmp_path / 'lib').glob('*.dist-info')) / 'entry_points.txt')
    scripts = list(ini['console_scripts'].values()) if 'console_scripts' in ini else []
    out = run(sys.executable, '-c', blocked, *scripts, cwd=tmp_path, PYTHONPATH=str(tmp_path / 'lib'))
    assert out.strip() == str(tmp_path / 'lib/jepa_lit/__init__.py')


def test_readme_is_current():
    run(sys.executable, 'docs/readme.py', '--check')


def test_readme_has_the_two_commands():
    for name in ('train', 'test'):
        m = re.search(
            rf'<!-- command: {name} -->\s*```(?:bash|sh)\n(.*)\n```', (root / 'README.md').read_text()
        )
        assert m and m[1].startswith('python3 -m venv'), f'one line for {name}'


def test_library_is_what_the_notebooks_export(tmp_path):
    copy(tmp_path, 'settings.ini', 'pyproject.toml', 'nbs')
    run(sys.executable, '-c', 'from nbdev.doclinks import nbdev_export; nbdev_export()', cwd=tmp_path)
    made = {p.name: p.read_text() for p in (tmp_path / 'jepa_lit').glob('*.py')}
    assert sorted(made) == modules
    made.pop('__init__.py')  # written by hand but for the version: tests/test_front_door.py
    for n in made:
        assert made[n] == (root / 'jepa_lit' / n).read_text(), (
            f'{n} is not what the notebooks say: run nbdev_export'
        )


def test_notebooks_are_clean(tmp_path):
    copy(tmp_path, 'settings.ini', 'pyproject.toml', 'nbs')
    run(sys.executable, '-c', 'from nbdev.clean import nbdev_clean; nbdev_clean()', cwd=tmp_path)
    for p in (root / 'nbs').glob('*.ipynb'):
        assert (tmp_path / 'nbs' / p.name).read_text() == p.read_text(), f'{p.name}: run nbdev_clean'

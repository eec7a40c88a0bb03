"Shared by all tests: types checked at run time, few threads, no window, no network"

import os, re, shutil, socket

os.environ.setdefault('MPLBACKEND', 'Agg')
os.environ.setdefault('OMP_NUM_THREADS', str(min(2, os.cpu_count() or 1)))  # before torch is imported
from pathlib import Path
import jaxtyping, pytest

root = Path(__file__).resolve().parent.parent
jaxtyping.install_import_hook('jepa_lit', 'beartype.beartype')  # before jepa_lit is imported

TOOLS = {'chromium': ('chromium', 'chromium-browser', 'google-chrome', 'chrome')}


def tool(name):
    "Where a program is, or None"
    return next((p for n in TOOLS.get(name, (name,)) if (p := shutil.which(n))), None)


def need(name):
    "Where a program is; skips the test where it is missing"
    return tool(name) or pytest.skip(f'needs {name}, which is not installed')


def pytest_addoption(parser):
    parser.addoption('--slow', action='store_true', help='run tests marked slow too')


def pytest_runtest_setup(item):
    if item.get_closest_marker('slow') and not item.config.getoption('--slow'):
        pytest.skip('slow: run with --slow')
    if item.get_closest_marker('gpu'):
        import torch

        if not torch.cuda.is_available():
            pytest.skip('no CUDA device')


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    "`JEPA_LIT_NO_SKIP=npm,g++`: a test that skips for want of a tool that is there has failed"
    report = (yield).get_result()
    present = {t for t in os.environ.get('JEPA_LIT_NO_SKIP', '').split(',') if t}
    if (
        report.skipped
        and isinstance(report.longrepr, tuple)
        and (m := re.search(r'needs ([\w+-]+)', report.longrepr[2]))
        and m[1] in present
    ):
        report.outcome, report.longrepr = 'failed', f'skipped, though {m[1]} is there: {report.longrepr[2]}'


@pytest.fixture
def unchecked():
    "Switches run-time type checking off, so that our own one-line errors are what a test sees"
    old = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update('jaxtyping_disable', True)
    yield
    jaxtyping.config.update('jaxtyping_disable', old)


@pytest.fixture(autouse=True)
def same_threads():
    "A test that sets torch's threads leaves them as they were: sums depend on them to the last bit"
    import torch

    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def _local(address):
    return (
        not isinstance(address, tuple)
        or str(address[0]) in ('localhost', '', '::1', '0.0.0.0')
        or str(address[0]).startswith('127.')
    )


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    "A test that reaches beyond this machine fails"

    def guard(name):
        real = getattr(socket.socket, name)

        def call(self, address):
            if not _local(address):
                raise RuntimeError(f'a test tried to reach {address}: tests use no network')
            return real(self, address)

        monkeypatch.setattr(socket.socket, name, call)

    guard('connect')
    guard('connect_ex')
    lookup = socket.getaddrinfo

    def getaddrinfo(host, *a, **k):
        if host not in (None, b'localhost', socket.gethostname()) and not _local(
            (host.decode() if isinstance(host, bytes) else host,)
        ):
            raise RuntimeError(f'a test tried to look up {host}: tests use no network')
        return lookup(host, *a, **k)

    monkeypatch.setattr(socket, 'getaddrinfo', getaddrinfo)

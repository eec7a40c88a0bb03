"The commands as a person types them: in a process of their own, right and wrong"

import errno, functools, gzip, io, json, os, pickle, re, shutil, signal, subprocess, sys, time, warnings
from pathlib import Path
import jaxtyping, numpy as np, pytest, torch
from PIL import Image
from sklearn.datasets import load_sample_image
from jepa_lit import commands, experiment
from jepa_lit.commands import ADVICE, advise, command, name_runs, parser, run_command, write_embeddings
from jepa_lit.data import about
from jepa_lit.lejepa import LeJEPA
from jepa_lit.pictures import embedding_figure
from jepa_lit.probes import probe
from jepa_lit.recipes import METHODS, describe_fields

TINY = (
    '--steps 6 --quiet --set widths=8,16 hidden=32 batch=32 global_views=2 slices=16 '
    'precision=float32 checkpoint_every=2'
).split()
FASHION = Path('/usr/share/datasets/fashion-mnist')


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, unchecked):
    "Run a command in `tmp_path`, in this process; gives (exit code, stdout, stderr)"
    # the draws are for the table's figures, not for these tests
    monkeypatch.setattr(experiment, 'probe', functools.partial(experiment.probe, draws=2))
    monkeypatch.setattr(experiment, 'embedding_figure', lambda *a, how: embedding_figure(*a, how='pca'))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('JEPA_LIT_CACHE', str(tmp_path / 'cache'))

    def go(name, *words, **env):
        for k, v in env.items():
            monkeypatch.setenv(k, v)
        monkeypatch.setattr(sys, 'argv', [name, *map(str, words)])
        capsys.readouterr()
        code = run_command(getattr(commands, name), sys.argv[1:])
        return code, *capsys.readouterr()

    return go


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "A small finished run with its probes, made once"
    folder = tmp_path_factory.mktemp('trained')
    checked = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update('jaxtyping_disable', True)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(experiment, 'probe', functools.partial(experiment.probe, draws=2))
        m.setattr(experiment, 'embedding_figure', lambda *a, how: embedding_figure(*a, how='pca'))
        assert (
            run_command(commands.jepa_lit_train, [*TINY, '--probe_every', '2', '--out', str(folder / 'r')])
            == 0
        )
    jaxtyping.config.update('jaxtyping_disable', checked)
    return folder / 'r'


@pytest.fixture
def r(trained, tmp_path):
    "A copy of that run, where commands run"
    return shutil.copytree(trained, tmp_path / 'r')


@pytest.fixture
def start(tmp_path):
    "Start a command as a program of its own in `tmp_path`"

    def go(name, *words):
        program = shutil.which(name) or pytest.fail(f'{name} is not installed as a program')
        env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONUNBUFFERED': '1'}
        return subprocess.Popen(
            [program, *map(str, words)],
            cwd=tmp_path,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return go


def picture(i, size=60):
    y, x = divmod(i * 37, 500)
    return Image.fromarray(
        load_sample_image('china.jpg' if i % 2 else 'flower.jpg')[y : y + size, x : x + size]
    )


def test_digits_end_to_end(run, tmp_path):
    code, out, err = run('jepa_lit_train', *TINY, '--seed', 3, '--split-seed', 1)
    assert code == 0, err
    folder = tmp_path / 'runs/digits-lejepa-3'
    assert {
        'recipe.json',
        'recipe.toml',
        'log.jsonl',
        'metrics.json',
        'model.safetensors',
        'checkpoints',
        'curves.png',
        'embedding.png',
    } <= {p.name for p in folder.iterdir()}
    m = json.loads((folder / 'metrics.json').read_text())
    assert (
        m['status'] == 'done'
        and m['seed'] == 3
        and m['split_seed'] == 1
        and m['wall_seconds'] > 0
        and 'jepa_lit_train' in m['command']
    )
    for row in ('raw', 'untrained', 'trained'):
        assert (
            all(0 <= m['probes'][row][c] <= 1 for c in ('knn', 'linear', 'linear_1', 'linear_5', 'linear_10'))
            and row in out
        )
    assert len((folder / 'log.jsonl').read_text().splitlines()) == 6
    code, table, err = run('jepa_lit_probe', folder, '--quiet', '--out', 'a/b/again.json', '--split-seed', 1)
    assert code == 0, err
    assert json.loads((tmp_path / 'a/b/again.json').read_text())['probes'] == m['probes']  # the same table
    code, _, err = run('jepa_lit_train', *TINY, '--seed', 3)  # the folder exists now
    assert code == 2 and '--overwrite' in err and err.count('\n') == 1
    assert json.loads((folder / 'metrics.json').read_text()) == m  # and nothing was lost
    code, out, err = run('jepa_lit_train', '--resume', folder, '--steps', 8, '--quiet')
    assert code == 0 and len((folder / 'log.jsonl').read_text().splitlines()) == 8, err


def test_ijepa(run, tmp_path):
    "The other method through the same command: rows for both initializations, the line to beat, and the watch in the log"
    code, said, err = run(
        'jepa_lit_train',
        *'--method ijepa --steps 4 --batch 16 --quiet --out r --set encoder.patch=16 encoder.width=16 encoder.depth=1 encoder.heads=2 predictor.width=8 predictor.depth=1 watch_every=2'.split(),
    )
    assert code == 0, err
    m, log = (
        json.loads((tmp_path / 'r/metrics.json').read_text()),
        [json.loads(l) for l in (tmp_path / 'r/log.jsonl').read_text().splitlines()],
    )
    assert 'the line to beat' in said and 'trained - untrained' in said
    assert (
        list(m['probes']) == ['raw', 'published init', 'untrained', 'trained']
        and m['recipe']['method'] == 'ijepa'
    )
    assert all('position_mean' in l for l in log) and ['effective_rank' in l for l in log] == [
        False,
        True,
        False,
        True,
    ]


def test_embed(run, r, tmp_path):
    code, out, err = run('jepa_lit_embed', 'r', '--out', 'e/z', '--quiet')
    assert code == 0, err
    z = np.load(tmp_path / 'e/z.npy')
    assert z.shape == (1797, 16) and z.dtype == np.float32
    import pyarrow.parquet as pq

    t = pq.read_table(tmp_path / 'e/z.parquet')
    assert (
        t.num_rows == 1797
        and t.column_names[:3] == ['name', 'part', 'label']
        and np.allclose(t['z0'].to_numpy(), z[:, 0])
    )
    pictures = tmp_path / 'pictures'
    pictures.mkdir()
    [picture(i).save(pictures / f'{i}.png') for i in range(5)]
    code, out, err = run(
        'jepa_lit_embed', 'r', '--data', 'folder', '--root', pictures, '--format', 'csv', '--quiet'
    )
    assert code == 0, err
    lines = (tmp_path / 'embeddings.csv').read_text().splitlines()
    assert [l.split(',')[0] for l in lines] == [
        'name',
        '0.png',
        '1.png',
        '2.png',
        '3.png',
        '4.png',
    ] and np.load(tmp_path / 'embeddings.npy').shape == (5, 16)


@pytest.mark.parametrize('stream', [False, True])
@pytest.mark.parametrize('labeled', [False, True])
def test_folder_with_bad_files(run, tmp_path, labeled, stream):
    root = tmp_path / 'pictures'
    for i in range(48):
        place = root / ('ab'[i % 2] if labeled else '')
        place.mkdir(parents=True, exist_ok=True)
        picture(i).save(place / f'{i}.jpg')
    somewhere = root / ('a' if labeled else '')
    (somewhere / 'zero.png').write_bytes(b'')
    whole = (somewhere / '0.jpg').read_bytes()
    (somewhere / 'cut.jpg').write_bytes(whole[: len(whole) // 2])
    words = [
        '--data',
        'folder',
        '--root',
        root,
        '--size',
        32,
        '--out',
        'r',
        '--steps',
        4,
        '--quiet',
        '--set',
        'widths=8,16',
        'hidden=32',
        'batch=8',
        'local_views=1',
        'slices=16',
        'precision=float32',
    ]
    code, out, err = run('jepa_lit_train', *words, *(['cache_gb=0', 'workers=1'] if stream else []))
    assert code == 0, err
    m = json.loads((tmp_path / 'r/metrics.json').read_text())
    assert sorted(Path(s).name for s in m['skipped']) == ['cut.jpg', 'zero.png'] and 'skipped' in out
    assert bool(m['probes']) == labeled and m['health']['trained']['effective_rank'] >= 1
    assert (tmp_path / 'r/gallery.png').exists() != labeled


def test_fashion_mnist(run, tmp_path):
    if not FASHION.exists():
        pytest.skip('needs the data set dataset-fashion-mnist, which is not installed')
    small = tmp_path / 'FashionMNIST/raw'
    small.mkdir(parents=True)  # the first few hundred, in the same format
    for name, n, size in (
        ('train-images-idx3-ubyte', 400, 784),
        ('train-labels-idx1-ubyte', 400, 1),
        ('t10k-images-idx3-ubyte', 200, 784),
        ('t10k-labels-idx1-ubyte', 200, 1),
    ):
        raw = gzip.decompress((FASHION / f'{name}.gz').read_bytes())
        head = 16 if size > 1 else 8
        (small / name).write_bytes(raw[:4] + n.to_bytes(4, 'big') + raw[8:head] + raw[head : head + n * size])
    code, out, err = run('jepa_lit_train', *TINY, '--data', 'fashion_mnist', JEPA_LIT_DATA=str(tmp_path))
    assert code == 0 and str(small) in out, err
    assert (
        json.loads((tmp_path / 'runs/fashion_mnist-lejepa-0/metrics.json').read_text())['probes']['trained'][
            'linear'
        ]
        > 0.3
    )


def test_program_interrupted_and_resumed(start, run, tmp_path):
    p = start('jepa_lit_train', *[w if w != '6' else '4000' for w in TINY], '--out', 'r')
    log = tmp_path / 'r/log.jsonl'
    while p.poll() is None and not (log.exists() and log.read_text().count('\n') > 3):
        time.sleep(0.1)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate()
    assert p.returncode == 130 and '--resume r' in err and 'Traceback' not in err, err
    done = log.read_text().count('\n')
    code, out, err = run('jepa_lit_train', '--resume', 'r', '--steps', done + 2, '--quiet')
    assert code == 0 and log.read_text().count('\n') == done + 2, err


def test_programs_answer(start):
    "The installed programs start, print help, and answer a mistake in one line"
    for name in ('jepa_lit_probe', 'jepa_lit_embed', 'jepa_lit_plot'):
        assert shutil.which(name) and len(parser(getattr(commands, name)).format_help().splitlines()) > 6
    p = start('jepa_lit_train', '--data', 'digts')
    out, err = p.communicate()
    code = p.returncode
    assert code == 2 and len(err.splitlines()) == 1 and 'did you mean digits' in err


@pytest.mark.parametrize(
    'words,expected',
    [
        ('--data digts', 'did you mean digits'),
        ('--set lamda=1', 'did you mean lamb'),
        ('--set lr', 'key=value'),
        ('--lr fast', 'float'),
        ('--method simclr', 'lejepa'),
        ('--steps 0', 'run.steps=0: expected int >= 1'),
        ('--batch 5000', '; use a smaller --batch'),
        ('--batch 1', 'expected int >= 2'),
        ('--size 8', 'smaller than the encoder\'s patch, 16 pixels; use a larger --size'),
        ('--resume nowhere', 'not a run'),
        ('--data folder', 'root'),
        ('--data folder --root missing', 'missing'),
        ('--data folder --root empty', 'empty'),
        ('--data folder --root text', 'no images'),
        ('--data folder --root one', 'at least 2 readable images'),
        ('--data folder --root broken', 'cannot be read'),
        ('--out file.txt', 'file.txt'),
        ('--out /proc/run', '/proc/run'),
        ('--splitseed 3', 'did you mean --split_seed'),
        ('--resume text', 'not a run'),
        ('--out text --overwrite', 'not overwritten; choose another --out'),
        ('--recipe nofile.toml', 'recipe file nofile.toml not found'),
        ('--recipe bad.toml', 'bad.toml is not TOML'),
        ('--recipe key.toml', 'key.toml: unknown recipe key \'lamda\': did you mean lamb'),
        ('--recipe kind.toml', 'kind.toml: optim.lr=\'fast\': expected float'),
        ('--recipe imagenet_ijepa', 'did you mean imagenet_ijepa_vith14'),
        ('--recipe imagenet_ijepa_vith14 --method lejepa', 'is for method ijepa'),
        ('--recipe imagenet_lejepa_vitl14', 'root'),
        ('--data imagenet_lejepa_vitl14', 'unknown data set'),
        ('--set steps=1.5', 'expected int'),
        ('--set compile=maybe', 'expected bool'),
        ('--set backbone=resnet19', 'did you mean resnet18'),
        ('--set backbone=vit_tiny patch=7', 'views of 32 pixels do not fit vit_tiny'),
        ('--set on_full=go', 'did you mean go on'),
        ('--shard', 'start them with jepa_lit_launch'),
        ('--resume auto --overwrite', 'choose one'),
        ('--resume text --out r', 'leave --out away'),
        ('--resume auto --out file.txt', 'is a file'),
        ('--out file.txt/sub', 'file.txt is a file: expected a folder'),
        ('--minutes nan', 'finite number'),
        ('--minutes -1', 'got -1'),
        ('--minutes inf', 'finite number'),
        ('--seed 99999999999999999999', 'run.seed=99999999999999999999: expected a finite number of at most'),
        ('--set weight_decay=inf', 'finite'),
    ],
)
def test_bad_input(run, tmp_path, words, expected):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'file.txt').write_text('x')
    for name, text in dict(bad='lr =', key='lamda = 0.1', kind='lr = "fast"').items():
        (tmp_path / f'{name}.toml').write_text(text)
    (tmp_path / 'text').mkdir()
    [(tmp_path / f'text/{i}.txt').write_text('x') for i in range(3)]
    (tmp_path / 'one').mkdir()
    picture(0).save(tmp_path / 'one/a.png')
    (tmp_path / 'broken').mkdir()
    [(tmp_path / f'broken/{i}.png').write_bytes(b'') for i in range(3)]
    code, out, err = run('jepa_lit_train', *words.split(), '--quiet')
    assert code == 2 and expected in err and 'Traceback' not in err, err
    assert len(err.strip().splitlines()) == 1, err
    assert not (tmp_path / 'runs').exists() and (tmp_path / 'text/0.txt').exists()


def test_help_shows_every_field(run):
    "The everyday flags fit a screen; `--help recipe` has each field of both methods, and of the options"
    code, out, err = run('jepa_lit_train', '--help')
    assert code == 0 and '--probe_every' in out and '--probe-every' in out and 'optim.lr' not in out
    code, out, err = run('jepa_lit_train', '--help', 'recipe')
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    for method in METHODS:
        for name, _, default, comment in describe_fields(method):
            assert (
                any(row[:1] == [name] and str(default).split()[0] in row for row in rows) and comment in out
            )
    assert 'checkpoint_every' in out and 'keep_last' in out


@pytest.mark.parametrize(
    'words, fields',
    [
        (['optim.lr=1e-4', 'lamb=.2'], {'optim.lr': 1e-4, 'loss.lamb': 0.2}),
        (['views=natural', 'backbone.widths=8,16'], {'views.name': 'natural', 'backbone.widths': [8, 16]}),
        (['optim.clip=none'], {'optim.clip': None}),
    ],
)
def test_set(run, bare, tmp_path, words, fields):
    "Fields by their full names and by bare ones"
    code, out, err = run('jepa_lit_train', *TINY, *words, '--minutes', 0, '--out', 'r')
    assert code == 0, err
    made = recipe_of(tmp_path / 'r')
    for name, value in fields.items():
        table, field = name.split('.')
        assert made[table][field] == value


@pytest.mark.parametrize('which', ['last', 'best'])
def test_which_weights(run, r, tmp_path, which):
    "The best checkpoint can be judged too"
    code, out, err = run('jepa_lit_probe', 'r', '--which', which, '--out', 'p.json', '--quiet')
    assert code == 0 and 'trained' in out, err
    code, out, err = run('jepa_lit_embed', 'r', '--which', which, '--out', 'z', '--format', 'csv', '--quiet')
    assert code == 0 and np.load(tmp_path / 'z.npy').shape == (1797, 16), err
    code, out, err = run('jepa_lit_probe', 'r', '--which', 'bst', '--quiet')
    assert code == 2 and 'did you mean best' in err


def test_read_only_output(run, tmp_path):
    if os.geteuid() == 0:
        words = ['--out', '/proc/nothing/run']
    else:
        (tmp_path / 'locked').mkdir(mode=0o500)
        words = ['--out', 'locked/run']
    code, out, err = run('jepa_lit_train', *TINY, *words)
    assert code == 2 and len(err.strip().splitlines()) == 1 and 'Traceback' not in err


@pytest.mark.parametrize('damage', ['truncated', 'pickle', 'checkpoint'])
def test_damaged_run(run, bare, r, tmp_path, damage):
    files = (
        sorted((tmp_path / 'r/checkpoints').glob('step-*.pt'))
        if damage == 'checkpoint'
        else [tmp_path / 'r/model.safetensors']
    )

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'owned'),)

    for f in files:
        f.write_bytes(f.read_bytes()[:3000] if damage == 'truncated' else pickle.dumps(Hostile()))
    for words in (
        (('jepa_lit_train', '--resume', 'r', '--quiet'),)
        if damage == 'checkpoint'
        else (('jepa_lit_probe', 'r', '--quiet'), ('jepa_lit_embed', 'r', '--quiet'))
    ):
        code, out, err = run(*words)
        assert code == 2 and len(err.strip().splitlines()) == 1 and f.name in err, err
    assert not (tmp_path / 'owned').exists()


@pytest.fixture
def bare(monkeypatch):
    "Training without the evaluation at its end, for tests of what comes before"
    monkeypatch.setattr(experiment, 'finish', lambda *a, **k: None)


def steps(folder):
    return [json.loads(l)['step'] for l in (folder / 'log.jsonl').read_text().splitlines()]


def recipe_of(folder):
    return json.loads((folder / 'recipe.json').read_text())['recipe']


def test_recipe_files(run, bare, tmp_path):
    "A file, changes beside it, and the run's own file given back"
    (tmp_path / 'mine.toml').write_text(
        'views = {global_views = 2}\nwidths = [8, 16]\n[run]\nsteps = 4\nprecision = "float32"\nbatch = 32\nseed = 9\n'
        '[loss]\nhidden = 32\nslices = 16\n[options]\nkeep_last = 1\n'
    )
    assert (
        run(
            'jepa_lit_train',
            '--recipe',
            'mine.toml',
            '--seed',
            2,
            '--set',
            'slices=8',
            '--out',
            'a',
            '--quiet',
        )[0]
        == 0
    )
    assert run('jepa_lit_train', '--recipe', 'a/recipe.toml', '--out', 'b', '--quiet')[0] == 0
    a, b = (recipe_of(tmp_path / n) for n in 'ab')
    assert a == b and (a['run']['seed'], a['run']['steps']) == (2, 4)
    assert (a['loss']['slices'], a['backbone']['widths']) == (8, [8, 16])
    same = [(tmp_path / n / 'model.safetensors').read_bytes() for n in 'ab']
    assert same[0][-1000:] == same[1][-1000:] and len(same[0]) == len(same[1])  # the same weights


def test_resume_auto(run, bare, tmp_path):
    "Starts where there is nothing, goes on where there is a run, and refuses another run's words"
    words = [*TINY, '--resume', 'auto', '--set', 'seed=4']
    code, out, err = run('jepa_lit_train', *words, '--minutes', 0)
    folder = tmp_path / 'runs/digits-lejepa-4'  # the default folder
    assert code == 0 and f'--resume {Path("runs/digits-lejepa-4")}' in out, err
    done = len(steps(folder))
    assert done < 6
    code, out, err = run('jepa_lit_train', *words)
    assert code == 0 and steps(folder) == list(range(6)), err
    before = (folder / 'log.jsonl').read_bytes()
    for more, said in (
        (['--lr', 1e-5], 'optim.lr=0.003, got optim.lr=1e-05'),
        (['--set', 'out=16'], 'loss.out'),
        (['--validate'], 'validate'),
        (['--set', 'optim.clip=1'], 'clip'),
    ):
        code, out, err = run('jepa_lit_train', *words, *more)
        assert code == 2 and said in err and 'was started with' in err and err.count('\n') == 1, err
    code, out, err = run('jepa_lit_train', '--resume', folder, '--method', 'ijepa')
    assert code == 2 and 'for method lejepa, got ijepa' in err
    assert (folder / 'log.jsonl').read_bytes() == before
    assert (
        run(
            'jepa_lit_train',
            '--resume',
            'auto',
            '--recipe',
            folder / 'recipe.toml',
            '--steps',
            8,
            '--set',
            'keep_last=1',
            'options.watch_every=3',
            '--quiet',
        )[0]
        == 0
    )
    assert (
        steps(folder) == list(range(8))
        and recipe_of(folder)['run']['steps'] == 8
        and len(list((folder / 'checkpoints').glob('step-*.pt'))) <= 2
    )


def asks(monkeypatch, when, number):
    "Make the online probe send this process a signal at its look number `when`"
    looks = []

    def look(method, step):
        looks.append(method)
        if len(looks) == when:
            os.kill(os.getpid(), number)
        return {}

    monkeypatch.setattr(experiment, 'online_probe', lambda *args, **kwargs: look)


@pytest.mark.parametrize(
    'number,expected', [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_exit_codes_of_signals(run, bare, tmp_path, monkeypatch, number, expected):
    with monkeypatch.context() as m:
        asks(m, 3, number)
        code, out, err = run('jepa_lit_train', *TINY, '--out', 'r', '--probe_every', 1, '--resume', 'auto')
    assert (
        code == expected
        and 'go on with: jepa_lit_train --resume r' in err
        and len(err.splitlines()) == 1
        and 'Traceback' not in err
    ), err
    assert (
        len(steps(tmp_path / 'r')) < 6
        and list((tmp_path / 'r/checkpoints').glob('step-*.pt'))
        and not (tmp_path / 'r/model.safetensors').exists()
    )
    code, out, err = run('jepa_lit_train', *TINY, '--out', 'r', '--resume', 'auto')
    assert code == 0 and steps(tmp_path / 'r') == list(range(6)), err


def test_signal_while_evaluating(run, tmp_path, monkeypatch):
    "Before and after the loop a signal ends the run at once, and the next start finishes it"
    with monkeypatch.context() as m:
        m.setattr(experiment, 'evaluate', lambda *a, **k: os.kill(os.getpid(), signal.SIGUSR1))
        code, out, err = run('jepa_lit_train', *TINY, '--out', 'r')
    assert code == 75 and 'SIGUSR1' in err and err.endswith('; go on with: jepa_lit_train --resume r\n'), err
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    monkeypatch.setattr(experiment, 'finish', lambda run, *a, **k: run.write('done.json', {}))
    assert run('jepa_lit_train', '--resume', 'r', '--quiet')[0] == 0 and (tmp_path / 'r/done.json').exists()


def test_tensorboard_missing(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)  # as where it is not installed
    code, out, err = run('jepa_lit_train', *TINY, '--tensorboard', '--out', 'r')
    assert (
        code == 2
        and "pip install 'jepa_lit[watch]'" in err
        and err.count('\n') == 1
        and not (tmp_path / 'r').exists()
    )


def test_tensorboard(run, bare, tmp_path):
    events = pytest.importorskip(
        'tensorboard.backend.event_processing.event_accumulator',
        reason='needs tensorboard, which is not installed',
    )
    assert run('jepa_lit_train', *TINY, '--tensorboard', '--probe_every', 3, '--out', 'r')[0] == 0
    found = events.EventAccumulator(str(tmp_path / 'r/tensorboard'))
    found.Reload()
    assert [e.step for e in found.Scalars('loss')] == list(range(6)) and [
        e.step for e in found.Scalars('knn')
    ] == [2, 5]


def test_plot(run, bare, tmp_path):
    for name, words in (('a', []), ('b', ['--lamb', 0.5]), ('c', ['--minutes', 0])):
        assert run('jepa_lit_train', *TINY, '--out', name, *words)[0] == 0
    code, out, err = run('jepa_lit_plot', 'a', 'b', 'c', '--out', 'pictures/three.png')
    assert code == 0 and '3 runs' in out and Image.open(tmp_path / 'pictures/three.png').width > 400, err
    assert list(name_runs(['a', 'b', 'c'])) == ['a (lamb=0.01)', 'b (lamb=0.5)', 'c (lamb=0.01)']
    assert 'in m.png' in run('jepa_lit_plot', 'a', '--out', 'm')[1] and (tmp_path / 'm.png').exists()
    (tmp_path / 'file').write_text('x')
    (tmp_path / 'c/log.jsonl').write_bytes(b'')
    for words, said in (
        (['a', 'nothing'], 'nothing is not a run'),
        (['file'], 'no run with a log: file is not a run'),
        (['c'], 'no run with a log: c'),
        (['a', '--out', 'x.odd'], 'odd'),
        (['a', '--out', 'file/q.png'], 'file/q.png cannot be written'),
        ([], 'required'),
    ):
        code, out, err = run('jepa_lit_plot', *words)
        assert code == 2 and said in err and len(err.splitlines()) == 1, err
    (tmp_path / 'all').mkdir()
    for name in 'abc':
        shutil.move(tmp_path / name, tmp_path / 'all')
    (tmp_path / 'all/note.txt').write_text('x')
    code, out, err = run('jepa_lit_plot', *sorted((tmp_path / 'all').iterdir()), '--out', 'm.png')
    assert code == 0 and '2 runs side by side in m.png' in out
    assert err.count('\n') == 1 and 'all/c' in err and 'note.txt is not a run' in err
    for words in (['all'], ['all/*'], ['all', 'all/a']):  # below; a pattern that no shell has read; one twice
        code, out, err = run('jepa_lit_plot', *words)
        assert code == 0 and '2 runs' in out, err


@pytest.mark.slow
def test_two_processes(start, tmp_path):
    "The same command under torchrun: one speaks, one folder, the same result as alone; a mistake is said once"
    words = [w if w != 'precision=float32' else 'precision=float32' for w in TINY]
    both = start('jepa_lit_launch', '--nproc', 2, '--', 'jepa_lit_train', *words, '--out', 'two')
    out, err = both.communicate()
    assert both.returncode == 0 and out.count('Splits: digits') == 1 and out.count('saved in two') == 1, err
    alone = start('jepa_lit_train', *words, '--out', 'one')
    alone.communicate()
    a, b = (
        [json.loads(l) for l in (tmp_path / n / 'log.jsonl').read_text().splitlines()] for n in ('one', 'two')
    )
    assert len(a) == len(b) == 6 and all(
        abs(x['loss'] - y['loss']) < 1e-3 * abs(x['loss']) for x, y in zip(a[:2], b[:2])
    )
    assert json.loads((tmp_path / 'two/metrics.json').read_text())['probes'].keys() == {
        'raw',
        'untrained',
        'trained',
    }
    wrong = start('jepa_lit_launch', '--nproc', 2, '--', 'jepa_lit_train', '--set', 'lamda=1')
    out, err = wrong.communicate()
    assert wrong.returncode == 2 and err.count('did you mean lamb') == 1 and 'Traceback' not in err, err
    split = start(
        'jepa_lit_launch', '--nproc', 2, '--', 'jepa_lit_train', *words, '--shard', '--out', 'spread'
    )
    out, err = split.communicate()
    c = [json.loads(l) for l in (tmp_path / 'spread/log.jsonl').read_text().splitlines()]
    assert split.returncode == 0 and len(c) == 6 and abs(a[0]['loss'] - c[0]['loss']) < 1e-3 * a[0]['loss'], (
        err
    )


def test_a_reader_that_goes_away(bare, tmp_path, monkeypatch):
    "`| head -1`: nothing more is printed, and the work is done"
    read, write = os.pipe()
    os.close(read)
    monkeypatch.chdir(tmp_path)
    with os.fdopen(write, 'w', buffering=1) as out:
        monkeypatch.setattr(sys, 'stdout', out)
        assert run_command(commands.jepa_lit_train, [*TINY, '--out', 'a run', '--minutes', '0']) == 0
    assert (tmp_path / 'a run/model.safetensors').exists()


@pytest.fixture
def somewhere(tmp_path):
    "A folder as a first-day user has it"
    (tmp_path / 'pics').mkdir()
    [picture(i).save(tmp_path / f'pics/{i}.jpg') for i in range(3)]
    (tmp_path / 'mine.toml').write_text('lr = 1e-3')
    (tmp_path / 'old').mkdir()
    (tmp_path / 'old/recipe.json').write_text('{}')


TRAIN = [
    ('pics', 'did you mean --data folder --root pics?'),
    ('./pics', '--data folder --root ./pics'),
    ('pics/0.jpg', 'unrecognized arguments: pics/0.jpg'),
    (
        '--root pics',
        'root is not read with the data set digits; for images of your own: --data folder --root',
    ),
    ('--root ~/pics', 'root is not read'),
    ('--data digits --root pics', 'root is not read'),
    ('--set root=pics', 'root is not read'),
    ('--data pics', 'pics is a folder: did you mean --data folder --root pics?'),
    ('--recipe pics', 'pics is a folder'),
    ('--data old', 'did you mean --resume old?'),
    ('--data folder pics', '--root pics'),
    ('--data folder', 'needs root'),
    ('--data folder --root pics/0.jpg', 'folder'),
    ('old', 'did you mean --resume old?'),
    ('mine.toml', 'did you mean --recipe mine.toml?'),
    ('fashion_mnist', 'did you mean --data fashion_mnist?'),
    ('ijepa', 'did you mean --method ijepa?'),
    ('imagenet_ijepa_vith14', 'did you mean --recipe imagenet_ijepa_vith14?'),
    ('lr=1e-3', 'did you mean --set lr=1e-3?'),
    ('--method ijepa --lamb 0.1', 'belongs to method lejepa'),
    ('--workers 2', 'workers is not read with the data set digits'),
    ('--set cache_gb=1', 'cache_gb is not read'),
    ('--set options.workers=1', 'workers is not read'),
    ('--data mnist --workers 2', 'workers is not read with the data set mnist'),
    ('--set local_size=14', 'not read with views.local_views=0'),
    ('--set patch=8', 'not read with backbone.name=convnet'),
    ('--set decay_shape=linear', 'not read'),
    ('--method ijepa --set masks=random n_targets=2', 'not read with masks.name=random'),
    ('--lr 1e-3 --set lr=1e-2', '--lr is given, and --set lr too'),
    ('--lr 1e-3 --set optim.lr=1e-2', 'optim.lr is given twice'),
    ('--set lr=1 lr=2', '--set has lr twice'),
    ('--set lr=1 --set lr=2', '--set has lr twice'),
    ('--steps 5 --steps 6', '--steps is given 2 times'),
    ('--split_seed 1 --split-seed=2', '--split-seed is given 2 times'),
    ('--set lr 1e-3', "key=value words, without spaces or commas between, got 'lr 1e-3'"),
    ('--set lr = 1e-3', "got 'lr = 1e-3'"),
    ('--set lr=1e-3,steps=5', 'without spaces or commas'),
    ('--set lr:1e-3', 'key=value'),
    ('--set “lr=1e-3”', 'key=value'),
    ('--set', 'expected at least one argument'),
    ('--set =3', 'key=value'),
    ('--set data=pics', 'use --data pics'),
    ('--device cuda', 'the variable JEPA_LIT_DEVICE'),
    ('--gpu 0', 'JEPA_LIT_DEVICE'),
    ('--epochs 3', '--steps, which counts batches'),
    ('--learning-rate 1e-3', 'did you mean --lr'),
    ('--batch_size 8', 'did you mean --batch'),
    ('--weight-decay 0.1', 'did you mean --set weight_decay=VALUE'),
    ('--optim.lr=1e-3', '--set optim.lr=1e-3'),
    ('--keep_last 3', '--set keep_last'),
    ('--path pics', 'did you mean --root?'),
    ('--lambda 0.1', 'did you mean --lamb?'),
    ('--data FashionMNIST', 'did you mean fashion_mnist'),
    ('--data CIFAR10', 'did you mean cifar10'),
    ('--method I-JEPA', 'did you mean ijepa'),
    ('--method LeJEPA', 'did you mean lejepa'),
    ('--set name=x', "unknown recipe key 'name'"),
    ('—steps 5', 'did you mean --steps?'),
    ('–steps 5', 'did you mean --steps?'),
    ('-steps 5', 'did you mean --steps?'),
    ('--STEPS 5', 'did you mean --steps?'),
    ('--quiet true', 'unrecognized arguments: true'),
    ('--quiet=true', 'true'),
    ('--overwrite false', 'false'),
    ('--steps=', 'steps'),
    ('--steps 1,000', 'invalid int value'),
    ('--steps 1e3', 'invalid int value'),
    ('--steps five', 'invalid int value'),
    ('--lr 0,001', 'invalid float value'),
    ('--minutes 5m', 'invalid float value'),
    ('--accept_changes', 'use it with --resume'),
    ('--resume', 'expected one argument'),
    ('--set threads=1000000', 'at most 1,000'),
    ('--set out=1000000000', 'at most 1,000,000'),
    ('--set knots=100000000', 'at most 1,000'),
    ('--set out=1000000 hidden=1000000', 'weights of'),
]


@pytest.mark.parametrize('words, expected', TRAIN)
def test_words_of_a_first_day(run, bare, somewhere, tmp_path, monkeypatch, words, expected):
    "Whatever is typed: one line says what was meant, and nothing is begun"
    monkeypatch.setenv('HOME', str(tmp_path))
    before = sorted(tmp_path.rglob('*'))
    code, out, err = run('jepa_lit_train', *words.split())
    assert code == 2 and expected in err and len(err.splitlines()) == 1, err
    assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize(
    'name, words, expected',
    [
        ('jepa_lit_train', ['--out', ''], 'out: a word expected, got an empty one'),
        ('jepa_lit_train', ['--resume', ''], 'resume: a word expected'),
        ('jepa_lit_train', ['--set', ''], 'set: a word expected'),
        ('jepa_lit_train', ['--steps\xa05'], 'did you mean --steps'),
        ('jepa_lit_plot', [''], 'runs: a word expected'),
        ('jepa_lit_probe', [], 'required: run'),
        ('jepa_lit_probe', ['--run', 'r'], 'did you mean run without --?'),
        ('jepa_lit_probe', ['pics'], 'pics is not a run'),
        ('jepa_lit_probe', ['r', '--root', 'pics'], 'root is not read with the data set digits'),
        ('jepa_lit_probe', ['r', '--data', 'folder', '--root', 'pics', '--split_seed', 3], 'needs labels'),
        ('jepa_lit_probe', ['r', '--out', 'pics'], 'pics cannot be written'),
        ('jepa_lit_probe', ['r', '--which', 'bets'], 'did you mean best'),
        ('jepa_lit_embed', ['pics', 'r'], 'unrecognized arguments: r'),
        ('jepa_lit_embed', ['r', 'pics'], 'did you mean --data folder --root pics?'),
        ('jepa_lit_embed', ['r', '--data', 'pics'], 'did you mean --data folder --root pics?'),
        ('jepa_lit_embed', ['r', '--format', 'csvv'], 'did you mean csv'),
        ('jepa_lit_embed', ['r', '--out', 'mine.toml/z'], 'cannot be written'),
        ('jepa_lit_embed', ['r', '--device', 'cuda'], 'JEPA_LIT_DEVICE'),
        ('jepa_lit_plot', ['r', '--output', 'x.png'], 'did you mean --out?'),
    ],
)
def test_words_of_other_commands(run, r, somewhere, name, words, expected):
    code, out, err = run(name, *words)
    assert code == 2 and expected in err and len(err.splitlines()) == 1, err


def test_help_and_version(run):
    for words in (['-h'], ['--help'], ['help'], ['--steps', 'x', '--help']):
        assert 'usage: jepa_lit_train' in run('jepa_lit_train', *words)[1]
    for name in ('jepa_lit_train', 'jepa_lit_plot'):
        assert run(name, '--version')[1].startswith('jepa_lit 0')


def test_home_and_endings(run, r, bare, tmp_path, monkeypatch):
    "`~` is the home folder wherever a path is, though no shell has seen it; an ending is written once"
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    home = tmp_path / 'home'
    shutil.copytree(r, home / 'r')
    shutil.copy(r / 'recipe.toml', home / 'mine.toml')
    assert run('jepa_lit_train', '--recipe=~/mine.toml', '--out=~/new', '--minutes', 0, '--quiet')[0] == 0
    assert (home / 'new/log.jsonl').exists() and not (tmp_path / '~').exists()
    assert run('jepa_lit_train', '--resume=~/new', '--minutes', 0, '--quiet')[0] == 0
    commands.jepa_lit_plot(['~/r'], out='~/a/m.png')  # from Python too
    assert (home / 'a/m.png').exists()
    for out, table in (
        ('z.npy', 'z.parquet'),
        ('~/v.csv', 'home/v.csv'),
        ('w.parquet', 'w.parquet'),
        ('x.1', 'x.1.parquet'),
    ):
        code, said, err = run('jepa_lit_embed', '~/r', f'--out={out}', '--quiet')
        assert code == 0 and (tmp_path / table).exists() and f'{Path(table).stem}.npy' in said, err
    assert not [p for p in tmp_path.rglob('*') if p.name.count('.npy') + p.name.count('.csv') > 1]
    code, out, err = run('jepa_lit_plot', '~/r', '--out=~/nobody.png')
    assert code == 0 and (home / 'nobody.png').exists()
    assert run('jepa_lit_plot', '~nobody/r')[0] == 2


class Killed(BaseException):
    pass


@pytest.mark.parametrize('ending', ['csv', 'parquet'])
@pytest.mark.parametrize('call', range(14))
def test_vectors_and_their_table_belong_together(tmp_path, monkeypatch, ending, call):
    "A process killed at any of its calls: the old pair, the new pair, or no table"
    vectors, table = tmp_path / 'z.npy', tmp_path / f'z.{ending}'
    old, new = np.zeros((3, 2), 'f4'), np.ones((3, 2), 'f4')
    write_embeddings(vectors, table, dict(name=list('abc')), old)
    calls = []

    def dying(real):
        def act(*args, **kwargs):
            calls.append(real)
            if len(calls) > call:
                raise Killed
            return real(*args, **kwargs)

        return act

    for owner, name in [
        (os, 'replace'),
        (os, 'fsync'),
        (os, 'unlink'),
        (os, 'open'),
        (np, 'save'),
        (Path, 'unlink'),
    ]:
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
    try:
        write_embeddings(vectors, table, dict(name=list('abc')), new)
    except Killed:
        pass
    monkeypatch.undo()
    z = np.load(vectors)
    assert np.array_equal(z, old) or np.array_equal(z, new)
    if table.exists():
        from pyarrow import csv, parquet

        read = csv.read_csv(table) if ending == 'csv' else parquet.read_table(table)
        assert np.array_equal(read['z0'].to_numpy(), z[:, 0])


def test_a_full_disk_leaves_the_old_vectors(tmp_path, monkeypatch):
    paths = tmp_path / 'z.npy', tmp_path / 'z.csv'
    write_embeddings(*paths, dict(name=['ä', 'b']), np.zeros((2, 2)))
    before = [p.read_bytes() for p in paths]
    monkeypatch.setattr(np, 'save', lambda *a: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(OSError, match='No space'):
        write_embeddings(*paths, dict(name=['a', 'b']), np.ones((2, 2)))
    assert [p.read_bytes() for p in paths] == before and 'ä'.encode() in before[1]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize('encoding', ['ascii', 'latin-1', 'cp1252', 'utf-8', None])
@pytest.mark.parametrize('text', ['± 1', '猫', '\udcff', '\x1b[2J\x07', 'tab\t', '\x9b31m', 'plain'])
def test_any_text_reaches_any_terminal(monkeypatch, encoding, text):
    "A character that a terminal cannot show ends no run, and none is a command to it"
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding) if encoding else io.StringIO()
    monkeypatch.setattr(sys, 'stdout', stream)

    def said():
        "Say it."
        print(text, flush=True)

    assert run_command(said, []) == 0
    got = raw.getvalue().decode(encoding) if encoding else stream.getvalue()
    assert got.strip() and not set(got) & {'\x1b', '\x07', '\x9b'}
    assert text not in ('plain', 'tab\t') or got == f'{text}\n'


@pytest.mark.parametrize('number', [errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EBADF])
def test_a_terminal_that_is_gone(monkeypatch, tmp_path, number):
    class Gone(io.TextIOWrapper):
        def write(self, text):
            raise OSError(number, os.strerror(number))

    for stream in (Gone(open(tmp_path / 'x', 'wb')), None):
        monkeypatch.setattr(sys, 'stdout', stream)
        monkeypatch.setattr(sys, 'stderr', stream)
        assert run_command(lambda: print('x'), []) == 0
        assert run_command(lambda: {}['x'], []) == 1


NAMED = """
import sys
from jepa_lit.commands import command
seen = []
@command
def demo(
    times: int = 1,  # how often
):
    "A demonstration."
    seen.append(times)
    return 'given back'

for name in ('demo', 'jt', 'train.py', 'C:/x/demo.exe', ''):
    sys.argv = [name, '--times', '3']
    try:
        exec("if __name__ == '__main__': sys.exit(demo())")
    except SystemExit as e:
        assert e.code == 0 and seen.pop() == 3
exec("found = demo(), demo(2), demo(times=3)")
assert found == ('given back',) * 3 and seen == [1, 2, 3], (found, seen)
"""


def test_a_program_of_any_name(tmp_path):
    "Installed, linked or copied under another name it reads its words; called from Python it is the function"
    (tmp_path / 'named.py').write_text(NAMED)
    done = subprocess.run([sys.executable, tmp_path / 'named.py'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_advice_is_found_by_key_or_class():
    "Every key that an error carries has advice, every advice has an error, and no text is read for it"
    code = '\n'.join(p.read_text() for p in Path(commands.__file__).parent.glob('*.py'))
    carried = set(re.findall(r"about\((?:[^()]|\([^()]*(?:\([^()]*\)[^()]*)*\))*?, '([a-z ]+)'", code))
    keys = {key for key in ADVICE if isinstance(key, str)}
    assert carried - {'exists', 'image'} <= keys, (
        carried - keys
    )  # an image's words are counted, not typed against
    assert keys - carried <= {'shards', 'whole'}, keys - carried  # these two are made from a word
    for key in ADVICE:
        error = about(ValueError('a fact'), key, 'a b') if isinstance(key, str) else key('a fact')
        assert advise(error).startswith('a fact; ') and '{' not in advise(error)


def test_memory_that_is_not_there_is_one_line(capsys):
    def large():
        "Ask for too much."
        torch.empty(10**15)

    assert run_command(large, []) == 2
    assert 'use a smaller --batch' in capsys.readouterr().err


def test_no_probe_and_many_classes(run, tmp_path):
    "No line of scikit-learn's; without probes the health and the pictures are there"
    z = torch.randn(120, 8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(120) % 30
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        found = probe(z, y, z, y, labels=(1,), draws=2, progress=True)
    assert list(found) == ['knn', 'linear', 'linear_1', 'linear_1_sd']
    code, out, err = run('jepa_lit_train', *TINY, '--no-probe', '--out', 'r')
    m = json.loads((tmp_path / 'r/metrics.json').read_text())
    assert code == 0 and m['probes'] == {} and m['health']['trained'] and not err.strip(), err
    assert (tmp_path / 'r/curves.png').exists() and (tmp_path / 'r/embedding.png').exists()


def test_a_network_that_has_diverged_says_so(run, r, monkeypatch):
    monkeypatch.setattr(LeJEPA, 'embed', lambda self, images: torch.full((len(images), 4), torch.nan))
    for words in (['jepa_lit_probe', 'r'], ['jepa_lit_embed', 'r']):
        code, out, err = run(*words, '--quiet')
        assert code == 2 and 'diverged; use a smaller --lr' in err and len(err.splitlines()) == 1, err


def test_resume_command_is_quoted(run, bare, tmp_path):
    code, out, err = run('jepa_lit_train', *TINY, '--out', 'a run', '--minutes', 0)
    assert code == 0 and "--resume 'a run'" in out, err
    (tmp_path / 'a run/model.safetensors').unlink()
    for name in ('jepa_lit_probe', 'jepa_lit_embed'):
        assert "jepa_lit_train --resume 'a run'" in run(name, 'a run')[2]
    for p in (tmp_path / 'a run/checkpoints').glob('step-*.pt'):
        p.write_bytes(b'')
    assert 'start anew with --overwrite' in run('jepa_lit_train', '--resume', 'a run')[2]

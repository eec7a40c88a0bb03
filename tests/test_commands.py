"The commands as a person types them: in a process of their own, right and wrong"

import functools, gzip, json, os, pickle, shutil, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from sklearn.datasets import load_sample_image
from jepa_lit import commands, experiment
from jepa_lit.commands import ADVICE, advise, name_runs, run_command
from jepa_lit.pictures import embedding_figure
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
    for spelling in ('--split_seed', '--split-seed'):  # probing again gives the same table
        code, table, err = run('jepa_lit_probe', folder, '--quiet', '--out', 'again.json', spelling, 1)
        assert code == 0, err
        assert json.loads((tmp_path / 'again.json').read_text())['probes'] == m['probes']
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


def test_embed(run, tmp_path):
    assert run('jepa_lit_train', *TINY, '--out', 'r')[0] == 0
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
    started = [
        start(n, '--help') for n in ('jepa_lit_train', 'jepa_lit_probe', 'jepa_lit_embed', 'jepa_lit_plot')
    ] + [start('jepa_lit_train', '--data', 'digts')]
    done = [(*p.communicate(), p.returncode) for p in started]
    for out, err, code in done[:4]:
        assert code == 0 and len(out.splitlines()) > 6, err
    out, err, code = done[4]
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
        ('--batch 5000', 'got 5000; use a smaller --batch'),
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
        ('--splitseed 3', 'did you mean'),
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
        ('--set backbone=vit_tiny patch=7', 'divisible by the patch size 7'),
        ('--set on_full=go', 'did you mean go on'),
        ('--shard', 'start them with jepa_lit_launch'),
        ('--resume auto --overwrite', 'choose one'),
        ('--resume text --out r', 'leave --out away'),
        ('--resume auto --out file.txt', 'is a file'),
        ('--out file.txt/sub', 'file.txt is a file: expected a folder'),
        ('--minutes nan', 'finite number'),
        ('--minutes -1', 'got -1'),
        ('--minutes inf', 'finite number'),
        ('--seed 99999999999999999999', 'below 2**63'),
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
def test_which_weights(run, tmp_path, which):
    "The best checkpoint can be judged too"
    assert run('jepa_lit_train', *TINY, '--probe_every', 2, '--out', 'r')[0] == 0
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
def test_damaged_run(run, bare, tmp_path, damage):
    assert run('jepa_lit_train', *TINY, '--out', 'r')[0] == 0
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
        (['--set', 'widths=8,32'], 'widths'),
        (['--validate'], 'validate'),
        (['--set', 'batch=16'], 'batch'),
    ):
        code, out, err = run('jepa_lit_train', *words, *more)
        assert code == 2 and said in err and 'was started with' in err and err.count('\n') == 1, err
    code, out, err = run('jepa_lit_train', '--resume', folder, '--method', 'ijepa')
    assert code == 2 and 'method=lejepa, got method=ijepa' in err
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
    for words, said in (
        (['a', 'nothing'], 'not a run'),
        (['a', '--out', 'x.odd'], 'odd'),
        (['a', '--out', 'file/q.png'], 'file/q.png cannot be written'),
        ([], 'required'),
    ):
        code, out, err = run('jepa_lit_plot', *words)
        assert code == 2 and said in err and len(err.splitlines()) == 1, err


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


def test_resume_command_is_quoted(run, bare, tmp_path):
    code, out, err = run('jepa_lit_train', *TINY, '--out', 'a run', '--minutes', 0)
    assert code == 0 and "--resume 'a run'" in out, err
    (tmp_path / 'a run/model.safetensors').unlink()
    for name in ('jepa_lit_probe', 'jepa_lit_embed'):
        assert "jepa_lit_train --resume 'a run'" in run(name, 'a run')[2]
    for p in (tmp_path / 'a run/checkpoints').glob('step-*.pt'):
        p.write_bytes(b'')
    assert 'start anew with --overwrite' in run('jepa_lit_train', '--resume', 'a run')[2]

"Files of others: nothing in them runs, none grows, and whatever is wrong is said in one line"

import io, json, os, pickle, struct, zipfile
import pytest, torch
from safetensors.torch import load_file, save_file
from jepa_lit.weights import held_bytes, named_tensors, read_config, read_weights

WEIGHTS = {'a': torch.arange(2000.0), 'b.c': torch.randn(30, 40)}


def refuse(path, has='', kind=ValueError):
    with pytest.raises(kind) as e:
        read_weights(path)
    said = str(e.value)
    assert type(e.value) is kind and said.isprintable() and len(said) < 500 and has in said, said


def repack(path, change=lambda data: data, which='data.pkl', method=zipfile.ZIP_STORED):
    "A zip file of torch with another member"
    plain = io.BytesIO()
    torch.save(WEIGHTS, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, 'w') as new:
        for m in old.infolist():
            hit = m.filename.endswith(which)
            data = change(old.read(m)) if hit else old.read(m)
            new.writestr(m.filename, data, method if hit else zipfile.ZIP_STORED)


def legacy(path, program):
    "A file of before torch 1.6 with another program for its object"
    plain = io.BytesIO()
    torch.save({}, plain, _use_new_zipfile_serialization=False)
    data = plain.getvalue()
    starts = [i for i in range(len(data)) if data[i : i + 2] == b'\x80\x02']
    path.write_bytes(data[: starts[3]] + program + data[starts[4] :])


# ---- what is packed, and what asks for more than it is long


@pytest.mark.parametrize('method', [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], ids=str)
@pytest.mark.parametrize('which', ['data.pkl', 'version', 'byteorder', 'data/0'])
def test_packed_members_are_not_unpacked(which, method, tmp_path):
    repack(tmp_path / 'x', lambda data: data + bytes(10**6), which, method)
    refuse(tmp_path / 'x', 'packed')


def test_another_directory_behind_a_prefix(tmp_path):
    "Two readers of zip files may find two directories: only one at its place is taken"
    repack(tmp_path / 'x', lambda data: data + bytes(10**6), method=zipfile.ZIP_DEFLATED)
    data = (tmp_path / 'x').read_bytes()
    end = data.rfind(b'PK\x05\x06')
    size, start = struct.unpack('<II', data[end + 12 : end + 20])
    harmless, at = bytearray(data[start : start + size]), 0
    while at < size:
        lengths = struct.unpack('<HHH', harmless[at + 28 : at + 34])
        harmless[at + 10 : at + 12] = bytes(2)
        harmless[at + 24 : at + 28] = harmless[at + 20 : at + 24]
        at += 46 + sum(lengths)
    (tmp_path / 'x').write_bytes(data[: start + size] + harmless + data[end:])
    refuse(tmp_path / 'x', 'packed')


ROOM = b'\x80\x02c%s\nbytearray\n\x8a\x05' + (40 * 10**9).to_bytes(5, 'little') + b'\x85R'


@pytest.mark.parametrize('module', [b'builtins', b'__builtin__'])
def test_room_of_any_length(module, tmp_path):
    program = ROOM % module
    repack(tmp_path / 'zip', lambda data: program + b'0' + data[2:])
    legacy(tmp_path / 'legacy', program + b'.')
    for name in ('zip', 'legacy'):
        refuse(tmp_path / name, 'bytearray')


def test_a_storage_that_is_claimed_and_never_written(tmp_path):
    class Claimed:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, x):
            if isinstance(x, Claimed):
                return 'storage', torch.FloatStorage, '0', 'cpu', 10**9, None

    class Rebuilt:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Claimed(), 0, (10**9,), (1,), False, {})

    program = io.BytesIO()
    Pickler(program, 2).dump({'a': Rebuilt()})
    legacy(tmp_path / 'x', program.getvalue())
    refuse(tmp_path / 'x', 'longer')


def nested(what, n):
    "Programs that build containers in containers"
    key = b'X\x01\0\0\0a'
    return {
        'lists': b'\x80\x02}' + key + b']' * n + b'a' * (n - 1) + b's.',
        'tuples': b'\x80\x02}' + key + b')' + b'\x85' * n + b's.',
        'dictionaries': b'\x80\x02}' + (key + b'}') * n + b's' * n + b'.',
        'itself': b'\x80\x02}q\0' + key + b'h\0s.',
    }[what]


@pytest.mark.parametrize('what', ['lists', 'tuples', 'dictionaries', 'itself'])
def test_deep_nesting(what, tmp_path):
    repack(tmp_path / 'zip', lambda data: nested(what, 10**5))
    legacy(tmp_path / 'legacy', nested(what, 10**5))
    for name in ('zip', 'legacy'):
        if what in ('lists', 'tuples'):
            assert named_tensors(read_weights(tmp_path / name)) == {}
        else:
            refuse(tmp_path / name, 'dictionary')


def test_dictionaries_that_share_dictionaries():
    "Forty times forty times forty ... ways to one tensor"
    state = {'a': torch.ones(1)}
    for _ in range(12):
        state = {f'{i}': state for i in range(40)}
    with pytest.raises(ValueError, match='expected a dictionary'):
        named_tensors(state)


# ---- safetensors


def headed(header, data=bytes(8), length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(header) if length is None else length) + header + data


GOOD = dict(dtype='F32', shape=[2], data_offsets=[0, 8])
HEADERS = dict(
    dtype=headed({'a': GOOD | dict(dtype='F99')}),
    dtype_number=headed({'a': GOOD | dict(dtype=3)}),
    dtype_list=headed({'a': GOOD | dict(dtype=[])}),
    six_bits=headed({'a': GOOD | dict(dtype='F6_E2M3', shape=[8], data_offsets=[0, 6])}, bytes(6)),
    a_list=headed({'a': [1]}),
    a_number=headed({'a': 3}),
    null=headed({'a': None}),
    negative=headed({'a': GOOD | dict(data_offsets=[-8, 0])}),
    reversed=headed({'a': GOOD | dict(data_offsets=[8, 0])}),
    beyond=headed({'a': GOOD | dict(data_offsets=[0, 2**62])}),
    beyond_64_bits=headed({'a': GOOD | dict(data_offsets=[0, 2**70])}),
    overlap=headed({'a': GOOD, 'b': GOOD}),
    hole=headed({'a': GOOD, 'b': GOOD | dict(data_offsets=[16, 24])}, bytes(24)),
    long_shape=headed({'a': GOOD | dict(shape=[10**10])}),
    negative_shape=headed({'a': GOOD | dict(shape=[-2])}),
    overflow=headed({'a': GOOD | dict(shape=[2**40, 2**40])}),
    long_header=headed({'a': GOOD}, length=2**63),
    longer_header=headed({'a': GOOD}, length=10**9),
    deep=headed(b'{"a":' + b'[' * 10**6),
    metadata=headed({'__metadata__': {'a': 3}, 'a': GOOD}),
    metadata_list=headed({'__metadata__': [], 'a': GOOD}),
    no_text=headed(b'{"\xff":1}'),
    a_name_for_a_terminal=headed({'a\n\x1b[2J': GOOD}),
    trailing=headed({'a': GOOD}) + bytes(100),
    braces=b'{' * 9,
)


@pytest.mark.parametrize('name', HEADERS)
def test_headers_of_others(name, tmp_path):
    (tmp_path / 'x').write_bytes(HEADERS[name])
    refuse(tmp_path / 'x')


# ---- folders


@pytest.mark.parametrize(
    'index',
    [
        {'weight_map': {'a': 'model.safetensors.index.json'}},
        {'weight_map': {'a': ''}},
        {'weight_map': {'a': '.'}},
        {'weight_map': {'a': '..'}},
        {'weight_map': {'a': '../outside.safetensors'}},
        {'weight_map': {'a': 'inside/part.safetensors'}},
        {'weight_map': {'a': 'gone'}},
        {'weight_map': {'a': 'x' * 10**5}},
        {'weight_map': {'a': 'a\0b\n'}},
        {'weight_map': {'a': ['part']}},
        {'weight_map': ['part']},
        {'weight_map': 'part'},
        {'weight_map': {}},
        {'weight_map': None},
        {},
        [],
        3,
        '[' * 10**5,
        '{"weight_map":' * 10**4,
        '{"a": ' + '1' * 10**5 + '}',
    ],
    ids=lambda x: str(x)[:40],
)
def test_an_index_chooses_among_the_files_beside_it(index, tmp_path):
    save_file(WEIGHTS, tmp_path / 'outside.safetensors')
    folder = tmp_path / 'folder'
    (folder / 'inside').mkdir(parents=True)
    save_file(WEIGHTS, folder / 'inside/part.safetensors')
    text = index if isinstance(index, str) else json.dumps(index)
    (folder / 'model.safetensors.index.json').write_text(text)
    refuse(folder)


@pytest.mark.skipif(os.name == 'nt', reason='no pipes in folders')
def test_pipes_and_links(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    refuse(tmp_path / 'pipe', 'pipe', FileNotFoundError)
    os.symlink('/dev/zero', tmp_path / 'device')
    refuse(tmp_path / 'device', 'device', FileNotFoundError)
    os.mkfifo(tmp_path / 'model.safetensors')
    refuse(tmp_path, 'neither', FileNotFoundError)
    os.remove(tmp_path / 'model.safetensors')
    save_file(WEIGHTS, tmp_path / 'blob')
    os.symlink('blob', tmp_path / 'model.safetensors')  # as the cache of the hub has it
    assert read_weights(tmp_path).keys() == WEIGHTS.keys()
    os.mkfifo(tmp_path / 'config.json')
    assert read_config(tmp_path) == {}


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    save_file(WEIGHTS, tmp_path / 'x.safetensors')
    assert read_weights('~/x.safetensors').keys() == WEIGHTS.keys()


# ---- damage


@pytest.mark.parametrize('how', ['zip', 'legacy', 'safetensors'])
def test_cut_anywhere(how, tmp_path):
    "By one byte or by half: one line"
    if how == 'safetensors':
        save_file(WEIGHTS, tmp_path / 'x')
    else:
        torch.save(WEIGHTS, tmp_path / 'x', _use_new_zipfile_serialization=how == 'zip')
    data = (tmp_path / 'x').read_bytes()
    assert held_bytes(read_weights(tmp_path / 'x')) == 4 * 3200
    for n in (0, 1, 8, 9, 10, 100, len(data) // 2, len(data) - 1000, len(data) - 1):
        (tmp_path / 'cut').write_bytes(data[:n])
        refuse(tmp_path / 'cut', 'cut')


@pytest.mark.parametrize('how', ['zip', 'legacy', 'safetensors'])
def test_flipped_anywhere(how, tmp_path):
    "Read, or one line"
    if how == 'safetensors':
        save_file(WEIGHTS, tmp_path / 'x')
    else:
        torch.save(WEIGHTS, tmp_path / 'x', _use_new_zipfile_serialization=how == 'zip')
    good = bytearray((tmp_path / 'x').read_bytes())
    spots = torch.randint(len(good), (100,), generator=torch.Generator().manual_seed(0)).tolist()
    for i in [*range(0, 600, 5), *spots]:
        bad = bytearray(good)
        bad[i] ^= 1 << i % 8
        (tmp_path / 'x').write_bytes(bad)
        try:
            named_tensors(read_weights(tmp_path / 'x'))
        except ValueError as e:
            assert str(e).isprintable(), (i, str(e))


def test_other_files(tmp_path):
    (tmp_path / 'text').write_text('hello')
    refuse(tmp_path / 'text', 'text')
    torch.save([1, 2], tmp_path / 'list')
    refuse(tmp_path / 'list', 'dictionary')
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / 'script')
    refuse(tmp_path / 'script', 'script')
    refuse(tmp_path / 'nowhere', 'nowhere', FileNotFoundError)
    (tmp_path / 'empty').mkdir()
    refuse(tmp_path / 'empty', 'neither', FileNotFoundError)
    repack(tmp_path / 'x', lambda data: b'\x80\x02cos\x1b[2J\nsys\x07tem\n.')
    refuse(tmp_path / 'x')

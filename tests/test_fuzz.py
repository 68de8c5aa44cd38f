"""
Every kind of file that is read, with a few of its bytes changed: it is read, or a sentence says why
not.

$ FUZZ=600 python -m pytest --long tests/test_fuzz.py    # so many files of each kind
"""
import json
import os
import random
import warnings

import pytest

from audio.files import read_wav
from checkpoint import load_checkpoint, write_weights
from configurator import configure
from prepare import play_text
from tests.helpers import run_here, undone
from text.ask import answers_in

FUZZ = int(os.environ.get('FUZZ', 40))


def mutated(data, rng):
    """Bytes with one to eight changes, most of them near the beginning, where headers are"""
    data = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        near = rng.random() < 0.6
        at = rng.randrange(min(len(data), 300) if near else len(data))
        kind = rng.randrange(5)
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[at:at + 4] = rng.choice([0, 1, 2 ** 31 - 1, 2 ** 32 - 1]).to_bytes(4, 'little')
        elif kind == 3:
            data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 20)))
        else:
            del data[at:at + rng.choice([1, 4, 50, len(data)])]
        data = data or bytearray(b'\0')
    return bytes(data)


def refused(action):
    """Do it -> was it refused, in a sentence? Any other exception is a fault."""
    try:
        action()
    except ValueError as e:
        assert len(str(e).splitlines()) == 1 and type(e) is ValueError, repr(e)
        return True
    except SystemExit as e:
        assert e.code == 2
        return True
    return False


def fuzz(path, whole, action, seed=0):
    """Do it with so many broken files -> how many were refused"""
    rng = random.Random(seed)
    n = 0
    for _ in range(FUZZ):
        path.write_bytes(mutated(whole, rng))
        with warnings.catch_warnings(action='ignore'):
            n += refused(action)
    return n


@pytest.mark.parametrize('ending', ['wav', 'flac', 'ogg', 'mp3'])
def test_sounds(ending, tmp_path):
    soundfile = pytest.importorskip('soundfile')
    path = tmp_path / f'a.{ending}'
    soundfile.write(str(path), play_text('17%5').numpy(), 16000)
    assert fuzz(path, path.read_bytes(), lambda: read_wav(str(path)))


@pytest.mark.parametrize('ending', ['pt', 'safetensors'])
def test_weights(ending, trained, tmp_path):
    path = tmp_path / f'w.{ending}'
    whole = trained / 'best.pt'
    if ending == 'safetensors':
        whole = path
        write_weights(load_checkpoint(str(trained))[1], str(path))
    assert fuzz(path, whole.read_bytes(), lambda: load_checkpoint(init_from=str(path)))


def test_configs(tmp_path, capsys):
    path = tmp_path / 'c.py'
    whole = b"# a config\ntasks = 'mirror'\nbatch_size = 4\nlearning_rate = 1e-3\ncompile = False\n"
    settings = {'__name__': '__main__', 'tasks': 'mod', 'batch_size': 1, 'learning_rate': 1.0,
                'compile': True}
    with undone():
        assert fuzz(path, whole, lambda: configure(dict(settings), [str(path)]))
    assert 'Traceback' not in capsys.readouterr().err


@pytest.mark.long
def test_the_log_of_a_training(trained, tmp_path, capsys):
    """As lab.figures reads it"""
    path = tmp_path / 'log.jsonl'

    def draw():
        code, _ = run_here('lab.figures', '--what=curves', tmp_path, f'--out={tmp_path / "c.png"}')
        said = capsys.readouterr().err
        assert code in (0, 2) and 'Traceback' not in said, said
        if code:
            raise SystemExit(code)

    assert fuzz(path, (trained / 'log.jsonl').read_bytes(), draw) < FUZZ


def test_answers(tmp_path):
    """Which text.ask goes on from: a row that is broken is left out"""
    path = tmp_path / 'results.jsonl'
    row = json.dumps({'sample_id': 'a', 'input_text': 'x', 'error': None}) + '\n'
    every = [{'sample_id': 'a', 'input_text': 'x'}]
    assert not fuzz(path, 3 * row.encode(), lambda: answers_in(str(path), every))

"""
Files that are broken, missing, malicious or half written: a sentence, and nothing else happens.

$ python -m pytest tests/test_files.py
"""
import os
import random
import re
import resource
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from scipy.signal import resample_poly

from checkpoint import load_checkpoint
from files import read_wav, write_wav
from prepare import play_text
from results import MARK, claim, clear, holding, write_whole
from score import transcribe
from tests.helpers import ROOT, TRAIN, output, path_of, refusal

# --- WAV files ---

def broken(data, rng):
    """The bytes of a WAV file, with one to four things in its first 44 bytes done to them"""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        kind, at = rng.randrange(5), rng.randrange(44)
        if kind == 0:
            data[at % len(data)] = rng.randrange(256)
        elif kind == 1:  # sizes, rates, channel counts
            number = rng.choice([0, 1, 2 ** 31 - 1, 2 ** 32 - 1, rng.randrange(2 ** 32)])
            data[at // 4 * 4:at // 4 * 4 + 4] = number.to_bytes(4, 'little')
        elif kind == 2:
            data[22:24] = rng.choice([0, 3, 255, 65535]).to_bytes(2, 'little')
        elif kind == 3:
            del data[rng.randrange(len(data)):]
        else:
            data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(9)))
        data = data or bytearray(b'R')
    return data


def test_two_thousand_broken_wavs(tmp_path):
    path = str(tmp_path / 'bad.wav')
    write_wav(path, play_text('AB'))
    good, rng = (tmp_path / 'bad.wav').read_bytes(), random.Random(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read, slowest = 0, 0
    for _ in range(2000):
        (tmp_path / 'bad.wav').write_bytes(broken(good, rng))
        t0 = time.time()
        try:
            transcribe(read_wav(path)[None])
            read += 1
        except ValueError as e:
            assert path in str(e)
            assert '\n' not in str(e)
        slowest = max(slowest, time.time() - t0)
    assert 0 < read < 2000
    assert slowest < 2
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 500_000  # kB


@pytest.fixture(scope='module')
def wavs(tmp_path_factory):
    """A folder of WAV files with which something is wrong"""
    folder = tmp_path_factory.mktemp('wavs')
    write_wav(str(folder / 'good.wav'), play_text('ABC'))
    good = (folder / 'good.wav').read_bytes()
    for name, content in {
        'empty': b'',
        'text': b'hello, this is no sound at all' * 9,
        'cut': good[:len(good) // 2],
        'header': good[:44],
        'short': good[:20],
    }.items():
        (folder / f'{name}.wav').write_bytes(content)
    (folder / 'folder.wav').mkdir()
    wavfile.write(folder / 'slow.wav', 4000, np.zeros(4000, np.int16))
    wavfile.write(folder / 'nan.wav', 16000, np.full(4000, np.nan, np.float32))
    wavfile.write(folder / 'none.wav', 16000, np.zeros(0, np.int16))
    write_wav(str(folder / 'silence.wav'), torch.zeros(16000))
    return folder


@pytest.mark.parametrize('name, says', [
    ('missing', 'there is no such file'),
    ('empty', 'this file cannot be read'),
    ('text', 'this file cannot be read'),
    ('cut', 'not a whole WAV file'),
    ('header', 'not a whole WAV file'),
    ('short', 'not a whole WAV file'),
    ('folder', 'cannot be read: Is a directory'),
    ('slow', 'a sample rate of 4000 Hz cannot hold these tones'),
    ('nan', 'has samples that are no sound'),
    ('none', 'the WAV file has no samples'),
])
def test_a_bad_wav_gets_a_sentence(name, says, wavs, tmp_path, trained, capsys):
    path = str(wavs / f'{name}.wav')
    with pytest.raises(ValueError, match='^' + re.escape(path) + ': .*' + says):
        read_wav(path)
    assert says in refusal(capsys, 'score.py', path)
    samples = tmp_path / 'new'
    flags = [f'--out_dir={trained}', f'--wav={path}', f'--sample_dir={samples}']
    assert says in refusal(capsys, 'sample.py', *flags)
    assert not samples.exists()


def test_silence_is_no_question(wavs, trained, capsys):
    path = wavs / 'silence.wav'
    asked = [f'--out_dir={trained}', f'--wav={path}']
    assert 'nothing can be heard in it' in refusal(capsys, 'sample.py', *asked)
    assert '(silence)' in output(capsys, 'score.py', path)


def pcm_wav(samples, form, size=None, kind=b'RIFF', more=b'', riff_size=None):
    """A WAV file whose header says what it likes"""
    head = b'WAVE' + more + b'fmt ' + len(form).to_bytes(4, 'little') + form
    head += b'data' + (len(samples) if size is None else size).to_bytes(4, 'little')
    whole = len(head) + len(samples) if riff_size is None else riff_size
    return kind + whole.to_bytes(4, 'little') + head + samples


FORM = struct.pack('<HHIIHH', 1, 1, 16000, 32000, 2, 16)
EXTENSIBLE = struct.pack('<HHIIHHHHIH14s', 0xfffe, 1, 16000, 64000, 4, 32, 22, 24, 4, 1,
                         bytes.fromhex('000000001000800000aa00389b71'))


@pytest.mark.parametrize('kind, header', [
    ('streamed 0', {'size': 0}),
    ('streamed 2 GB', {'size': 0x7fffffff}),
    ('streamed 4 GB', {'size': 0xffffffff, 'riff_size': 0xffffffff}),
    ('size of RIFF off', {'riff_size': 77}),
    ('RF64', {'kind': b'RF64', 'size': 0xffffffff,
              'more': b'ds64' + (28).to_bytes(4, 'little') + bytes(28)}),
    ('24 bits in 32', {'form': EXTENSIBLE}),
])
@pytest.mark.parametrize('with_soundfile', [True, False])
def test_headers_as_recorders_write_them(kind, header, with_soundfile, tmp_path, monkeypatch):
    if not with_soundfile:
        monkeypatch.setitem(sys.modules, 'soundfile', None)
    wave = play_text('17%5')
    wide = header.get('form') == EXTENSIBLE
    samples = (wave.numpy() * 32767).astype('<i2')
    if wide:
        samples = (wave.numpy() * (2 ** 31 - 1)).astype('<i4') & ~255
    path = tmp_path / 'a.wav'
    path.write_bytes(pcm_wav(samples.tobytes(), **{'form': FORM, **header}))
    assert transcribe(read_wav(str(path))[None]) == ['17%5']


@pytest.mark.parametrize('ending, how', [
    ('flac', {}), ('ogg', {}), ('mp3', {}), ('aiff', {}), ('wav', {'subtype': 'ULAW'}),
    ('wav', {'subtype': 'ALAW'}), ('wav', {'subtype': 'PCM_24'}), ('wav', {'subtype': 'IMA_ADPCM'}),
])
def test_other_formats_are_read(ending, how, tmp_path):
    soundfile = pytest.importorskip('soundfile')
    path = str(tmp_path / f'a.{ending}')
    soundfile.write(path, play_text('17%5').numpy(), 16000, **how)
    assert transcribe(read_wav(path)[None]) == ['17%5']


@pytest.mark.parametrize('start, kind', [
    (b'\x00\x00\x00\x20ftypM4A ', 'M4A or MP4'), (b'\x1aE\xdf\xa3webm', 'WebM'),
    (b'#!AMR\n', 'AMR'), (b'MThd', 'MIDI'), (b'\xff\xf1', 'AAC'), (b'fLaC', 'FLAC'),
])
def test_what_cannot_be_read_is_named(start, kind, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'soundfile', None)
    path = tmp_path / 'a.wav'
    path.write_bytes(start + bytes(500))
    with pytest.raises(ValueError, match=f'this {kind} file .*pip install soundfile'):
        read_wav(str(path))


def test_channels_that_cancel(tmp_path):
    wave = play_text('17%5').numpy()
    for name, columns in {'inverted': [wave, -wave], 'one': [0 * wave, wave]}.items():
        path = str(tmp_path / f'{name}.wav')
        wavfile.write(path, 16000, np.stack(columns, 1))
        assert transcribe(read_wav(path)[None]) == ['17%5']


def test_floats_that_were_never_scaled_are_read(tmp_path):
    wave = 32768 * resample_poly(play_text('ABC').numpy(), 441, 160)
    wavfile.write(tmp_path / 'loud.wav', 44100, wave)
    found = read_wav(str(tmp_path / 'loud.wav'))
    assert transcribe(found[None]) == ['ABC']
    assert 0.9 < found.abs().max() <= 1


# --- checkpoints ---

@pytest.fixture
def checkpoint(tmp_path, trained):
    """The path of a checkpoint that is whole, in a folder of its own"""
    path = tmp_path / 'best.pt'
    path.write_bytes((trained / 'best.pt').read_bytes())
    load_checkpoint(str(tmp_path))
    return path


def test_a_hundred_broken_checkpoints(checkpoint):
    good, rng, refused = checkpoint.read_bytes(), random.Random(2), 0
    for _ in range(100):
        data = bytearray(good)
        for _ in range(20):
            anywhere, head = rng.randrange(len(data)), rng.randrange(2000)
            tail = len(data) - 1 - rng.randrange(4000)
            data[rng.choice([anywhere, head, tail])] = rng.randrange(256)
        whole = rng.random() < 0.7
        checkpoint.write_bytes(data if whole else data[:rng.randrange(len(data))])
        try:
            load_checkpoint(str(checkpoint.parent))
        except ValueError as e:
            assert str(checkpoint) in str(e)
            refused += 1
    assert refused > 30


class Smuggled:
    """What makes a folder when it is unpickled"""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_smuggled_code_does_not_run(tmp_path):
    torch.save({'model': Smuggled(str(tmp_path / 'ran'))}, tmp_path / 'best.pt')
    with pytest.raises(ValueError, match='not a checkpoint'):
        load_checkpoint(str(tmp_path))
    assert not (tmp_path / 'ran').exists()
    torch.load(tmp_path / 'best.pt', weights_only=False)
    assert (tmp_path / 'ran').exists()  # or the test would show nothing


@pytest.mark.parametrize('content', [b'', b'junk'])
def test_what_is_no_checkpoint_gets_a_sentence(content, checkpoint, capsys):
    checkpoint.write_bytes(content)
    said = refusal(capsys, 'score.py', f'--out_dir={checkpoint.parent}')
    assert f'{checkpoint} is not a checkpoint, or is damaged' in said
    assert 'remove' not in said and 'delete' not in said


def test_a_checkpoint_of_other_settings_gets_a_sentence(checkpoint, capsys):
    contents = torch.load(checkpoint, weights_only=True)
    contents['model_args']['d_model'] = 64
    torch.save(contents, checkpoint)
    said = refusal(capsys, 'score.py', f'--out_dir={checkpoint.parent}')
    assert f'{checkpoint} was made by another model.py' in said


@pytest.mark.parametrize('script', ['sample.py', 'score.py'])
def test_a_folder_without_a_checkpoint_gets_a_sentence(script, tmp_path, capsys):
    said = refusal(capsys, script, f'--out_dir={tmp_path}')
    assert f"there is no {tmp_path / 'ckpt.pt'}" in said
    assert 'python train.py config/mirror.py' in said and '--init_from=release' in said


@pytest.mark.parametrize('script, flag, says', [
    ('sample.py', '--start=Az', "'z' is not a symbol"),
    ('sample.py', '--start=', 'at least one symbol'),
    ('sample.py', '--split=ood_lenght', 'ood_length_15'),
    ('sample.py', '--task=sing', 'task is mirror or mod or bracket or reverse'),
    ('score.py', '--num_samples=0', 'num_samples must be at least 1, not 0'),
    ('score.py', '--split=ood_lenght', 'ood_length_15'),
    ('score.py', '--init_from=best', 'there is no best; init_from is release, a folder'),
])
def test_what_a_checkpoint_cannot_be_asked(script, flag, says, trained, capsys):
    said = refusal(capsys, script, f'--out_dir={trained}', flag)
    assert says in said


# --- writing ---

def fail_halfway(f):
    f.write(b'half')
    raise RuntimeError('the disk is full')  # as torch says


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / 'best.pt'
    with pytest.raises(OSError):
        write_whole(str(path), fail_halfway)
    assert not list(tmp_path.iterdir())
    write_whole(str(path), lambda f: f.write(b'before'))
    with pytest.raises(OSError):
        write_whole(str(path), fail_halfway)
    with pytest.raises(AttributeError):
        write_whole(str(path), lambda f: torch.save(lambda: 0, f))  # cannot be pickled
    assert path.read_bytes() == b'before'
    assert list(tmp_path.iterdir()) == [path]
    write_whole(str(path), lambda f: f.write(b'after'))
    assert path.read_bytes() == b'after'


def test_a_folder_of_others_is_refused_and_one_of_ours_used_again(tmp_path):
    pattern = r'\d+_(question|answer)\.wav'
    names = {'000_answer.wav', '001_answer.wav', '000_answer.wav.bak', 'my.wav'}
    for name in names:
        (tmp_path / name).write_text('sound')
    with pytest.raises(ValueError, match='has files that this program did not make'):
        claim(str(tmp_path))
    assert set(os.listdir(tmp_path)) == names
    (tmp_path / MARK).touch()
    claim(str(tmp_path))
    holding.pop().close()
    clear(str(tmp_path), pattern)
    assert set(os.listdir(tmp_path)) == {MARK, '000_answer.wav.bak', 'my.wav'}


@pytest.fixture
def another_run():
    """Give it a folder, which another process then holds"""
    processes = []

    def start(folder):
        code = f'from results import claim; claim({str(folder)!r}); print(); input()'
        p = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, cwd=ROOT)
        processes.append(p)
        p.stdout.readline()
        return p

    yield start
    for p in processes:
        p.kill()
        p.wait()


def test_a_lock_ends_with_its_process(tmp_path, another_run):
    p = another_run(tmp_path)
    with pytest.raises(ValueError, match='another run writes to'):
        claim(str(tmp_path))
    p.kill()
    p.wait()
    claim(str(tmp_path))
    holding.pop().close()


@pytest.mark.parametrize('script, flags, folder', [
    ('train.py', [path_of('config/mirror.py'), *TRAIN], '.'),
    ('sample.py', ['--init_from=release', '--start=AB'], '.'),
    ('prepare.py', ['--num_samples=2'], 'mirror/iid'),
    ('prepare.py', ['--task=dyna', '--format=text', '--total_tokens=1K'], 'dyna'),
])
def test_two_runs_do_not_share_a_folder(script, flags, folder, tmp_path, capsys, another_run):
    another_run(tmp_path / folder)
    where = 'sample_dir' if script == 'sample.py' else 'out_dir'
    assert 'another run writes' in refusal(capsys, script, *flags, f'--{where}={tmp_path}')
    assert os.listdir(tmp_path / folder) == [MARK]


@pytest.mark.parametrize('script, flags, name', [
    ('sample.py', ['--init_from=release', '--start=AB'], 'thesis.txt'),
    ('prepare.py', ['--num_samples=2'], 'mirror/iid/metadata.jsonl'),
    ('prepare.py', ['--task=dyna', '--format=text', '--total_tokens=1K'], 'dyna/test.jsonl'),
])
def test_a_person_keeps_their_files(script, flags, name, tmp_path, capsys):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('mine')
    where = 'sample_dir' if script == 'sample.py' else 'out_dir'
    said = refusal(capsys, script, *flags, f'--{where}={tmp_path}')
    assert f'{path.parent} has files that this program did not make' in said
    assert path.read_text() == 'mine'
    path.unlink()
    for _ in range(2):  # what it wrote itself, it may replace
        output(capsys, script, *flags, f'--{where}={tmp_path}')

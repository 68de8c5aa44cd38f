"""
Nothing is lost in use: lost output, signals, other devices, weights as safetensors.

$ python -m pytest tests/test_use.py
"""
import fcntl
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import termios
import time

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import think
from checkpoint import load_checkpoint
from conditions import change
from files import read_wav, write_wav
from prepare import make_batch, play_text
from tests.helpers import ROOT, TRAIN, files_in, gen, is_one_line, output, path_of, refusal, run
from think import converse
from transcribe import find_tones

MIRROR = ['train.py', path_of('config/mirror.py'), *TRAIN, '--test_samples=0']
LONG = [*MIRROR, '--max_iters=1000000', '--eval_interval=100000']


def command(script, *flags):
    return [sys.executable, path_of(script), *map(str, flags)]


def begin(*flags, **how):
    """Start a script, with its output in a pipe"""
    return subprocess.Popen(command(*flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, **how)


def wait_for(p, start):
    """Read a process's output up to a line that begins so"""
    for line in p.stdout:
        if line.startswith(start):
            return
    raise AssertionError(p.stderr.read())


# --- output that nobody reads ---

@pytest.mark.parametrize('script, flags', [
    ('train.py', ['--help']),
    ('score.py', ['--init_from=release', '--split=iid', '--num_samples=2', '--device=cpu']),
    ('prepare.py', ['--format=text', '--task=all', '--dry_run=true']),
])
def test_a_pipe_that_is_closed_ends_it_quietly(script, flags, tmp_path):
    p = begin(script, *flags, cwd=tmp_path)
    p.stdout.close()
    assert p.stderr.read() == ''
    assert p.wait() == -signal.SIGPIPE  # 141 in a shell


@pytest.mark.parametrize('script, flags', [('train.py', ['--help']), ('score.py', ['x.wav'])])
def test_a_full_disk_for_output_gets_a_sentence(script, flags, tmp_path):
    shutil.copy(os.path.join(ROOT, 'assets', 'mirror_question.wav'), tmp_path / 'x.wav')
    with open('/dev/full', 'w') as full:
        p = subprocess.run(command(script, *flags), stdout=full, stderr=subprocess.PIPE, text=True,
                           cwd=tmp_path)
    assert p.returncode == 1
    assert is_one_line(p.stderr) and 'No space left' in p.stderr


def test_training_that_nobody_reads_goes_on(tmp_path):
    p = begin(*MIRROR, f'--out_dir={tmp_path}', '--test_samples=1')
    wait_for(p, 'iter ')
    p.stdout.close()
    assert 'Traceback' not in p.stderr.read()
    assert p.wait(timeout=60) == 0
    assert load_checkpoint(str(tmp_path), init_from='resume')[1]['iter_num'] == 6
    assert {'scores.json', 'samples'} < set(files_in(tmp_path))


def take_terminal():
    """In a new process: its standard input is its terminal from now on"""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_terminal_that_closes_saves_the_training(tmp_path):
    mine, theirs = pty.openpty()
    p = subprocess.Popen(command(*LONG, f'--out_dir={tmp_path}'), stdin=theirs, stdout=theirs,
                         stderr=theirs, start_new_session=True, preexec_fn=take_terminal)
    os.close(theirs)
    seen = b''
    while b'iter ' not in seen:
        seen += os.read(mine, 1000)
    os.close(mine)
    assert p.wait(timeout=60) in (129, 141)
    assert load_checkpoint(str(tmp_path))[1]['iter_num'] >= 2


# --- signals ---

@pytest.mark.parametrize('number', [signal.SIGHUP, signal.SIGUSR1])
def test_other_signals_save_as_well(number, tmp_path):
    p = begin(*LONG, f'--out_dir={tmp_path}')
    wait_for(p, 'iter ')
    p.send_signal(number)
    out, err = p.communicate(timeout=60)
    assert p.returncode == 128 + number, err
    iterations = load_checkpoint(str(tmp_path))[1]['iter_num']
    assert f'stopped at iteration {iterations}, saved in {tmp_path}/ckpt.pt' in out


def test_what_nohup_turns_off_stays_off(tmp_path):
    p = begin(*MIRROR, f'--out_dir={tmp_path}', '--max_iters=60', '--log_interval=1',
              preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_for(p, 'iter ')
    p.send_signal(signal.SIGHUP)
    out, err = p.communicate(timeout=60)
    assert p.returncode == 0, err
    assert 'trained 60 iterations' in out


def test_a_stop_during_validation_ends_soon_and_is_made_up_for(tmp_path):
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    flags = [*MIRROR, '--max_iters=4', '--eval_interval=2', '--mix=error']
    run(*flags, f'--out_dir={whole}', '--eval_samples=100')
    # Here a validation would take a minute.
    p = begin(*flags, f'--out_dir={stopped}', '--eval_samples=20000', '--log_interval=1')
    wait_for(p, 'iter 2/')
    time.sleep(1)
    p.send_signal(signal.SIGTERM)
    before = time.monotonic()
    out, err = p.communicate(timeout=60)
    assert time.monotonic() - before < 5
    assert p.returncode == 143, err
    assert 'stopped at iteration 2' in out
    assert not (stopped / 'best.pt').exists()
    run(*flags, f'--out_dir={stopped}', '--eval_samples=100', '--init_from=resume')
    a, b = (load_checkpoint(str(folder))[1] for folder in (whole, stopped))
    assert a['best'] == b['best'] and a['iter_num'] == b['iter_num']
    assert all(torch.equal(a['model'][key], b['model'][key]) for key in a['model'])
    assert (stopped / 'log.jsonl').read_text().count('val_ood') == 2


# --- what is killed ---

KILLS = int(os.environ.get('KILLS', 3))  # of each script; tests/test_train.py kills training


def test_listening_that_is_killed_leaves_whole_files(tmp_path):
    rng = random.Random(0)
    flags = ['--init_from=release', '--listen=true', f'--sample_dir={tmp_path / "samples"}']
    sound = torch.cat([F.pad(play_text(text), (8000, 16000)) for text in 20 * ['AB', '7%5', '()']])
    write_wav(str(tmp_path / 'stream.wav'), sound)
    flags.append(f'--wav={tmp_path / "stream.wav"}')
    for _ in range(KILLS):
        p = begin('sample.py', *flags)
        wait_for(p, 'the scorer heard')
        time.sleep(rng.uniform(0, 0.3))
        p.kill()
        p.wait()
        for name in files_in(tmp_path / 'samples'):
            if name.endswith('.wav'):
                assert len(read_wav(str(tmp_path / 'samples' / name)))


# --- other devices ---

def test_a_checkpoint_of_another_device_goes_on(tmp_path):
    run(*MIRROR, f'--out_dir={tmp_path}', '--max_iters=3')
    path = tmp_path / 'ckpt.pt'
    checkpoint = torch.load(path, weights_only=True)
    checkpoint['generator'] = torch.zeros(16, dtype=torch.uint8)  # as that of a GPU
    torch.save(checkpoint, path)
    text = run(*MIRROR, f'--out_dir={tmp_path}', '--init_from=resume')
    assert 'random numbers of another kind of device' in text
    assert 'trained 6 iterations' in text


class NoDoubles(TorchDispatchMode):
    """Refuses float64, as Apple's GPUs do"""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            assert getattr(x, 'dtype', None) != torch.float64, func
        return out


def test_a_model_needs_no_doubles(monkeypatch):
    model, _ = load_checkpoint(init_from='release')
    b = change(make_batch('mod', 'iid', 4, gen()), 'gap_0.5')
    tones = find_tones(b.question)  # the scorer, which works on the CPU for such a device
    monkeypatch.setattr(think, 'find_tones', lambda waves: tones)
    with NoDoubles():
        converse(model, b.question, b.lengths, think=2)
        frames, logits, *_ = model(b.question, b.lengths)
        (frames.mean() + logits.mean()).backward()


# --- weights ---

def test_weights_travel_as_safetensors(trained, tmp_path, capsys):
    path = tmp_path / 'w.safetensors'
    output(capsys, 'checkpoint.py', f'--out_dir={trained}', f'--path={path}')
    model, was = load_checkpoint(str(trained))
    found, now = load_checkpoint(init_from=str(path))
    for key, x in model.state_dict().items():
        assert torch.equal(x.half().float(), found.state_dict()[key])
    assert {k: now[k] for k in ('config', 'provenance')} == {k: was[k] for k in ('config',
                                                                               'provenance')}
    said = output(capsys, 'sample.py', f'--init_from={path}', '--start=AB',
                  f'--sample_dir={tmp_path / "samples"}')
    assert 'asked AB' in said
    run('train.py', path_of('config/mirror.py'), *TRAIN, '--test_samples=0',
        f'--init_from={path}', f'--out_dir={tmp_path / "more"}')

    shutil.copy(path, tmp_path / 'model.safetensors')  # a folder that holds weights alone
    assert load_checkpoint(str(tmp_path))[1]['iter_num'] == was['iter_num']


def test_weights_come_from_the_hub(trained, tmp_path, capsys, monkeypatch):
    hub = pytest.importorskip('huggingface_hub')
    path = tmp_path / 'model.safetensors'
    output(capsys, 'checkpoint.py', f'--out_dir={trained}', f'--path={path}')
    monkeypatch.setattr(hub, 'hf_hub_download', lambda name, file: str(tmp_path / file))
    assert load_checkpoint(init_from='hf:me/mine')[1]['config']['tasks'] == 'mirror'

    def fail(name, file):
        raise OSError("there is no network\nat all")

    monkeypatch.setattr(hub, 'hf_hub_download', fail)
    said = refusal(capsys, 'score.py', '--init_from=hf:me/mine')
    assert 'cannot get model.safetensors of me/mine from the Hub: there is no network' in said


@pytest.mark.parametrize('ending, says', [('pt', 'is cut: its end is missing'),
                                          ('safetensors', 'is cut: its end is missing')])
def test_a_cut_file_is_called_so(ending, says, trained, tmp_path, capsys):
    whole = trained / 'best.pt'
    path = tmp_path / f'w.{ending}'
    if ending == 'safetensors':
        output(capsys, 'checkpoint.py', f'--out_dir={trained}', f'--path={path}')
        whole = path
    path.write_bytes(whole.read_bytes()[:-1000])
    assert says in refusal(capsys, 'sample.py', f'--init_from={path}', '--start=AB')


# --- names, texts, the environment ---

def test_configs_in_any_encoding(tmp_path):
    path = tmp_path / 'c.py'
    path.write_bytes('\ufeff# \u266a Töne\nmax_iters = 3\n'.encode())
    environment = {**os.environ, 'LC_ALL': 'en_US.ISO-8859-1', 'PYTHONUTF8': '0',
                   'MPLBACKEND': 'nonsense'}
    p = subprocess.run(command('train.py', path, *TRAIN, f'--out_dir={tmp_path / "out"}',
                               '--max_iters=3', '--test_samples=1'),
                       capture_output=True, text=True, env=environment)
    assert p.returncode == 0, p.stderr
    assert 'trained 3 iterations' in p.stdout


def test_home_is_known(tmp_path, monkeypatch):
    p = subprocess.run(command('prepare.py', '--num_samples=1', '--out_dir=~/data'),
                       env={**os.environ, 'HOME': str(tmp_path)})
    assert p.returncode == 0
    assert (tmp_path / 'data' / 'mirror' / 'iid' / 'metadata.jsonl').exists()


def test_file_names_that_are_no_text(tmp_path):
    name = os.path.join(os.fsencode(tmp_path), b'\xff\xe9.wav')
    shutil.copy(os.path.join(ROOT, 'assets', 'mirror_question.wav'), name)
    other = os.path.join(os.fsencode(tmp_path), b'\xfe.wav')
    p = subprocess.run([*command('score.py'), name, '--verbose=true'], capture_output=True)
    assert p.returncode == 0, p.stderr
    p = subprocess.run([*command('score.py'), name, other], capture_output=True, text=True)
    assert p.returncode == 2 and is_one_line(p.stderr), p.stderr
    folder = os.path.join(os.fsencode(tmp_path), b'\xff')
    p = subprocess.run([*command('sample.py', '--init_from=release'), b'--wav=' + name,
                        b'--sample_dir=' + folder], capture_output=True, text=True)
    assert p.returncode == 0, p.stderr

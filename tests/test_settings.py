"""
Config files and flags: what the configurator takes and refuses, and that every config fits.

$ python -m pytest tests/test_settings.py
"""
import ast
import glob
import json
import re
import signal
import sys

import pytest
import torch

import configurator
import results
from configurator import configure, run_name
from tests.helpers import ROOT, TRAIN, output, path_of, refusal, run_here

SCRIPTS = ['prepare.py', 'train.py', 'sample.py', 'score.py', 'figures.py', 'inside.py', 'bench.py',
           'ask.py', 'checkpoint.py']


@pytest.fixture
def settings():
    hook, handler = sys.excepthook, signal.getsignal(signal.SIGPIPE)
    yield {
        '__file__': path_of('train.py'),
        '__doc__': 'A script.',
        'batch_size': 16,
        'learning_rate': 1e-3,
        'compile': False,
        'out_dir': 'out',
        'json': json,
        'CONSTANT': 3,
    }
    sys.excepthook = hook
    signal.signal(signal.SIGPIPE, handler)


@pytest.fixture
def config(tmp_path):
    """Give it the text of a config file, and get its path"""
    def write(text):
        (tmp_path / 'c.py').write_text(text + '\n')
        return str(tmp_path / 'c.py')

    return write


# --- what is taken ---

def test_flags_and_files_are_taken_in_order(settings, config):
    path = config('batch_size = 4 * 8\nlearning_rate = 1\nout_dir = "file"')
    result = configure(settings, [path, '--compile=true', '--out_dir=a=b', '--batch_size=64'])
    assert settings['batch_size'] == 64
    assert settings['learning_rate'] == 1.0
    assert type(settings['learning_rate']) is float
    assert settings['compile'] is True
    assert settings['out_dir'] == 'a=b'
    assert result == {key: settings[key] for key in result}
    assert set(result) == {'batch_size', 'learning_rate', 'compile', 'out_dir'}
    configure(settings, ['--batch_size=8', path])
    assert (settings['batch_size'], settings['out_dir']) == (32, 'file')


def test_a_config_may_compute(settings, config):
    path = config('import math\ndef double(x):\n    return 2 * x\n_n = 4\n'
                  'batch_size = double(_n)\nlearning_rate = math.pi')
    configure(settings, [path])
    assert settings['batch_size'] == 8
    assert settings['learning_rate'] == pytest.approx(3.14159, abs=1e-5)


def test_a_config_builds_on_another_from_any_folder(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mod = configurator.run_config(path_of('config/mod.py'))
    direct = configurator.run_config(path_of('config/mod_direct.py'))
    assert mod['aloud'] == 'mod' and direct['aloud'] == ''
    assert direct['learning_rate'] == mod['learning_rate'] == 3e-3

    own = configurator.run_config(config("base('ablate/no_pauses')\nbatch_size = 2"))
    nothing = configurator.run_config(path_of('config/ablate/nothing.py'))
    assert own == nothing | {'pauses': '0', 'batch_size': 2}
    multitask = configurator.run_config(path_of('config/multitask.py'))
    assert nothing.keys() >= multitask.keys()


# --- what is refused ---

@pytest.mark.parametrize('flag, says', [
    ('--batchsize=3', "did you mean 'batch_size'"),
    ('--batch_size=3.5', 'batch_size takes an integer'),
    ('--batch_size', 'write it as --batch_size=value'),
    ('--compile=1', 'compile takes true or false'),
    ('--learning_rate=fast', 'learning_rate takes a number'),
    ('--json=3', 'there is no setting'),
    ('--CONSTANT=4', 'there is no setting'),
    ('nowhere.py', 'cannot read the config file nowhere.py'),
])
def test_a_flag_is_refused(flag, says, settings, capsys):
    with pytest.raises(SystemExit) as e:
        configure(settings, [flag])
    message = capsys.readouterr().err
    assert e.value.code == 2
    assert says in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize('text, says', [
    ('compile = 1', 'compile takes true or false'),
    ('batch_sise = 1', "did you mean 'batch_size'"),
    ('out_dir = 3', 'out_dir takes text'),
    ('x = ', 'SyntaxError'),
    ('x = 1 / 0', 'ZeroDivisionError'),
    ('import math\nlearning_rate = math.tau * 1j', 'learning_rate takes a number'),
    ('batch_size = True', 'batch_size takes an integer'),
    ("base('nowhere')", 'cannot read the config file'),
])
def test_a_config_is_refused(text, says, settings, config, capsys):
    path = config(text)
    with pytest.raises(SystemExit) as e:
        configure(settings, [path])
    message = capsys.readouterr().err
    assert e.value.code == 2
    assert says in message
    assert len(message.splitlines()) == 1


needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.mark.parametrize('flags, says', [
    ('--tasks=mirror,sing', "'sing'"),
    ('--tasks=', 'tasks are some of mirror, mod, bracket, reverse'),
    ('--pauses=-1', 'pauses takes a number from 0 to 10000'),
    ('--pauses=1,2', 'such as 1, not'),
    ('--pauses=1e308', 'pauses takes a number'),
    ('--tasks=mirror,mod --pauses=1,2,3', 'such as 1,1, not'),
    ('--tasks=mod --aloud=mod --hide=1 --batch_size=3', 'even number'),
    ('--hide=2', 'hide must be at least 0 and at most 1, not 2.0'),
    ('--hide=0.5 --pointer=False', 'hide needs the pointer'),
    ('--mix=1,2', 'such as 1, not'),
    ('--mix=0', 'mix must leave a share to one of the tasks'),
    ('--mix=1e308', 'mix takes a number from 0 to 10000'),
    ('--sound=loud', 'sound is clean or real'),
    ('--aloud=mirror', 'aloud'),
    ('--batch_size=0', 'batch_size must be at least 1'),
    ('--seed=-1', 'seed must be at least 0'),
    ('--init_from=best', 'there is no best'),
    ('--dtype=float16', 'auto or float32 or bfloat16'),
    ('--ssd=fast', 'auto or torch or mamba_ssm'),
    ('--patch=3', 'patch must divide 40'),
    ('--patch=0', 'patch must be a positive multiple of 1'),
    ('--d_model=33', 'd_model must be a positive multiple of 4'),
    ('--w_frames=0 --w_symbols=0', 'nothing is learned'),
    ('--device=abacus', "no device 'abacus'"),
    pytest.param('--ssd=mamba_ssm', 'use ssd=auto', marks=needs_no_gpu),
    pytest.param('--device=cuda', "no device 'cuda'", marks=needs_no_gpu),
])
def test_settings_that_cannot_be_get_a_sentence(flags, says, tmp_path, capsys):
    flags = [*TRAIN, '--test_samples=0', f'--out_dir={tmp_path}', *flags.split()]
    assert says in refusal(capsys, 'train.py', *flags)
    assert not list(tmp_path.iterdir())


# --- configs ---

def configs():
    found = glob.glob('config/**/*.py', root_dir=ROOT, recursive=True)
    assert len(found) > 25
    return sorted(found)


def script_of(path):
    """The script that a config is for"""
    with open(path_of(path)) as f:
        return 'score.py' if 'for score.py' in f.read() else 'train.py'


@pytest.mark.parametrize('path', configs())
def test_a_config_can_be_applied_to_its_script(path, monkeypatch, capsys):
    reached = []

    def pick_device(device):
        """Stop where the settings have been checked, and before anything is written."""
        reached.append(device)
        sys.exit(0)

    monkeypatch.setattr(configurator, 'pick_device', pick_device)
    assert run_here(script_of(path), path_of(path))[0] == 0, capsys.readouterr().err
    assert reached == ['auto']


@pytest.mark.parametrize('argv, seed, name', [
    (['config/mirror.py'], 1337, 'mirror'),
    (['config/ablate/no_pointer.py', '--seed=2'], 2, 'ablate/no_pointer_s2'),
    (['config/mod.py', 'own.py'], 1337, 'own'),
    (['my_config/deep/own.py'], 1337, 'own'),
    ([], 1337, 'mirror_mod'),
    (['--lr=1'], 3, 'mirror_mod_s3'),
])
def test_the_folder_of_a_run_is_named_after_its_config(argv, seed, name, tmp_path, monkeypatch):
    paths = [path_of(a) if a.startswith('config') else a for a in argv]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['train.py', *paths])
    assert run_name('mirror_mod', seed) == name
    if paths == argv:
        return
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, 'argv', ['train.py', *argv])
    assert run_name('mirror_mod', seed) == name


# --- help ---

def test_help_lists_settings_with_their_comments(settings, capsys):
    with pytest.raises(SystemExit) as e:
        configure(settings, ['--help'])
    text = capsys.readouterr().out
    assert e.value.code == 0
    assert re.search(r'--compile=False +# torch.compile', text)
    assert 'json' not in text and 'CONSTANT' not in text


@pytest.mark.parametrize('script', SCRIPTS)
def test_every_script_has_help(script, capsys):
    text = output(capsys, script, '--help')
    assert f'$ python {script}' in text
    usage, listed = text.split('\nsettings:\n')
    assert re.search(r'^  --\w+=.*  # ', listed, re.M)
    for value in re.findall(r'^  --\w+=(.*?)(?:  # .*)?$', listed, re.M):
        ast.literal_eval(value.strip())  # not what a function's variable of the same name is


def test_help_of_train_lists_the_settings_of_the_model(capsys):
    listed = output(capsys, 'train.py', '--help')
    assert re.search(r'^  --n_encoder=6$', listed, re.M)
    assert '--n_symbols' not in listed


def test_provenance_names_the_command_and_the_versions(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['/somewhere/train.py', '--out_dir=a b'])
    found = results.provenance()
    assert found['command'] == "train.py '--out_dir=a b'"
    assert found['torch'] == torch.__version__
    assert {'commit', 'python', 'numpy', 'scipy'} <= set(found)

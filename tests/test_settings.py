"""
Settings: what the configurator takes and refuses, that every config fits, and what --help prints.
And that importing is only importing.

$ python -m pytest tests/test_settings.py
"""
import ast
import glob
import json
import os
import re
import subprocess
import sys
from dataclasses import fields

import pytest
import torch

import configurator
import system
import tasks
from configurator import configure
from model import JMambaConfig
from tests.helpers import (
    ROOT,
    TRAIN,
    command,
    environment,
    output,
    path_of,
    refusal,
    run_here,
    source_of,
    undone,
)

PROGRAMS = ['prepare.py', 'train.py', 'score.py', 'sample.py', 'checkpoint.py',
            'lab.figures', 'lab.bench', 'lab.inside', 'lab.results', 'lab.readability',
            'text.ask', 'text.dataset', 'page.export']


@pytest.fixture(autouse=True)
def process():
    """What configure() does to a program's process is undone after each test."""
    with undone():
        yield


@pytest.fixture
def settings():
    return {
        '__name__': '__main__',
        '__file__': path_of('train.py'),
        '__doc__': 'A program.',
        'batch_size': 16,
        'learning_rate': 1e-3,
        'compile': False,
        'out_dir': 'out',
        'json': json,
        'CONSTANT': 3,
    }


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
    ('--learns=ear', 'learns names no part of the model: ear'),
    ('--layer=Mamba', "there is no 'Mamba'"),
    ('--cross=nowhere:Cross', "there is no 'nowhere:Cross'"),
    ('--points_at=there', 'points_at are some of same, end, again'),
    ('--n_decoder=3', 'n_decoder must be a positive multiple of 2'),
    ('--patch=3', 'patch must divide 40'),
    ('--patch=0', 'patch must be a positive multiple of 1'),
    ('--d_model=33', 'd_model must be a positive multiple of 4'),
    ('--w_frames=0 --w_symbols=0', 'nothing is learned'),
    ('--device=abacus', "no device 'abacus'"),
    pytest.param('--ssd=mamba_ssm', 'ssd=auto takes what there is', marks=needs_no_gpu),
    pytest.param('--device=cuda', "no device 'cuda'", marks=needs_no_gpu),
])
def test_settings_that_cannot_be_get_a_sentence(flags, says, tmp_path, capsys):
    flags = [*TRAIN, '--test_samples=0', f'--out_dir={tmp_path}', *flags.split()]
    assert says in refusal(capsys, 'train.py', *flags)
    assert not list(tmp_path.iterdir())


def test_what_is_refused_removes_nothing(tmp_path, capsys):
    (tmp_path / '.jericho').touch()
    (tmp_path / 'best.pt').write_text('an earlier run')
    flags = [path_of('config/mirror.py'), f'--out_dir={tmp_path}', '--overwrite=true']
    for flag in '--layer=Mamba', '--learns=ear', '--patch=3', '--device=abacus':
        refusal(capsys, 'train.py', *flags, flag)
        assert (tmp_path / 'best.pt').read_text() == 'an earlier run'


# --- configs ---

def configs():
    found = glob.glob('config/**/*.py', root_dir=ROOT, recursive=True)
    assert len(found) > 25
    return sorted(found)


def program_of(path):
    """The program that a config is for"""
    with open(path_of(path)) as f:
        return 'score.py' if 'for score.py' in f.read() else 'train.py'


@pytest.mark.parametrize('path', configs())
def test_a_config_can_be_applied_to_its_program(path, monkeypatch, capsys):
    reached = []

    def pick_device(device):
        """Stop where the settings have been checked, and before anything is written."""
        reached.append(device)
        sys.exit(0)

    monkeypatch.setattr(system, 'pick_device', pick_device)
    monkeypatch.setattr(tasks, 'check', print)  # which tests/test_task.py asks for
    assert run_here(program_of(path), path_of(path))[0] == 0, capsys.readouterr().err
    assert reached == ['auto']


@pytest.mark.parametrize('argv, name', [
    (['config/mirror.py'], 'mirror'),
    (['config/ablate/no_pointer.py', '--seed=2'], 'ablate/no_pointer_s2'),
    (['config/mirror.py', 'own.py'], 'own'),
    (['deep/own.py'], 'own'),
    (['--tasks=mirror,reverse'], 'mirror_reverse'),
    (['--tasks=mirror,reverse', '--seed=3'], 'mirror_reverse_s3'),
])
def test_the_folder_of_a_run_is_named_after_its_config(argv, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'deep').mkdir()
    for own in ('own.py', 'deep/own.py'):
        (tmp_path / own).touch()
    (tmp_path / 'out').touch()  # in the way of any folder, so that the program says which it is
    given = [path_of(a) if a.startswith('config') else a for a in argv]
    said = refusal(capsys, 'train.py', *TRAIN, *given)
    assert f'cannot write to out/{name}: ' in said


# --- what is set, and what reads it ---

def parts_of(program):
    """A program's source -> the lines of the block of its settings; what comes after it"""
    lines = source_of(program).partition('\n# --- settings')[2].splitlines()[1:]
    end = next(i for i, line in enumerate(lines) if 'configure(globals()' in line)
    return lines[:end], '\n'.join(lines[end + 1:])


def defaults_of(program):
    """-> {name of a setting: its value}, as they stand in its source"""
    block = ast.parse('\n'.join(parts_of(program)[0]))
    return {node.targets[0].id: ast.literal_eval(node.value) for node in block.body}


def test_the_model_that_train_makes_is_that_of_the_model():
    here = defaults_of('train.py')
    of_model = {f.name: f.default for f in fields(JMambaConfig)}
    both = here.keys() & of_model.keys()
    assert len(both) > 12
    assert {key: here[key] for key in both} == {key: of_model[key] for key in both}
    assert of_model.keys() - both == {'n_symbols', 'n_so_far'}  # which the tasks say


def read_in(source):
    """The names that code reads, and its texts, which may be keys"""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


@pytest.mark.parametrize('program', PROGRAMS)
def test_each_setting_is_read(program):
    read = read_in(parts_of(program)[1])
    if program == 'train.py':
        read |= {f.name for f in fields(JMambaConfig)}  # which the next test asks for
    assert not defaults_of(program).keys() - read


def test_each_setting_of_the_model_is_read():
    read = read_in(source_of('model.py'))
    assert not {f.name for f in fields(JMambaConfig)} - read


# --- help ---

def test_help_prints_the_block_as_it_stands(config, capsys):
    path = config('"""\nWhat it does.\n"""\nfrom configurator import configure\n\n'
                  '# --- settings ---\n# first\nwide = 3        # as wide as that\nname = \'\'\n'
                  '# then\nis_so = False   # = or not\nconfigure(globals())\n'
                  'print("it went on")\nlate = 3  # no setting\n')
    shown = re.sub(' +#', ' #', output(capsys, path, '--wide=44', '--help'))
    assert shown == ('What it does.\n\n# first\n--wide=44 # as wide as that\n--name=\n'
                     '# then\n--is_so=False # = or not\n')
    assert 'it went on' in output(capsys, path)


def without_torch(folder, program, *flags):
    """Run a program where what takes seconds to import cannot be imported -> the process"""
    for module in ('torch', 'numpy', 'scipy', 'matplotlib', 'tqdm', 'httpx'):
        (folder / f'{module}.py').write_text('raise SystemExit("this takes seconds")')
    paths = {'PYTHONPATH': os.pathsep.join([str(folder), ROOT])}
    return subprocess.run(command(program, *flags), env=environment(**paths), cwd=folder,
                          capture_output=True, text=True)


@pytest.mark.parametrize('program', PROGRAMS)
def test_each_program_has_help_and_needs_no_torch_for_it(program, tmp_path):
    p = without_torch(tmp_path, program, '--help')
    assert (p.returncode, p.stderr) == (0, '')
    assert f'$ python {"" if program.endswith(".py") else "-m "}{program}' in p.stdout
    lines, values = parts_of(program)[0], defaults_of(program)
    assert lines
    for line, shown in zip(lines, p.stdout.splitlines()[-len(lines):], strict=True):
        name = line.partition(' = ')[0]
        if name not in values:
            assert shown == line
            continue
        setting, *comment = re.split(' +# ', shown, maxsplit=1)
        assert setting == f'--{name}={values[name]}'
        assert comment == re.split(' +# ', line, maxsplit=1)[1:]


@pytest.mark.parametrize('program', PROGRAMS)
def test_a_mistyped_flag_needs_no_torch(program, tmp_path):
    p = without_torch(tmp_path, program, '--batchsise=3')
    name = program.rpartition('.')[2] + '.py' if '.py' not in program else program
    assert (p.returncode, p.stdout) == (2, '')
    assert p.stderr.startswith(f"{name}: error: --batchsise=3: there is no setting 'batchsise'; ")
    assert len(p.stderr.splitlines()) == 1


def test_help_has_the_values_of_the_config_that_is_named(capsys):
    text = output(capsys, 'train.py', path_of('config/mod.py'), '--seed=5', '--help')
    mod = configurator.run_config(path_of('config/mod.py'))
    assert mod['batch_size'] == 256
    for key, value in {**mod, 'seed': 5, 'patch': 5}.items():
        assert re.search(rf'^--{key}={re.escape(str(value))}( |$)', text, re.M)


# --- importing is only importing ---

MINE = '''
"""A program of a user, with settings and flags of its own."""
import os, random, signal, sys, types
x = types.SimpleNamespace()
x.y = 1
batch_size, hide = 'mine', None
OF_KERNELS = 'DISABLE_MMA_V3', 'TORCHINDUCTOR_CACHE_DIR'  # our own; of PyTorch's compiler
for key in OF_KERNELS:
    os.environ.pop(key, None)

import matplotlib, numpy, scipy.signal, torch, tqdm

def state():
    return {
        'hook': sys.excepthook,
        'signals': {n: signal.getsignal(n) for n in signal.valid_signals()},
        'environment': dict(os.environ),
        'argv': list(sys.argv),
        'stdout': (id(sys.stdout), sys.stdout.line_buffering, sys.stdout.errors),
        'folder': os.getcwd(),
        'files': sorted(os.listdir()),
        'random': random.getstate(),
        'numpy': str(numpy.random.get_state()),
        'torch': torch.get_rng_state().tolist(),
        'threads': torch.get_num_threads(),
        'type': torch.get_default_dtype(),
        'tf32': torch.backends.cuda.matmul.allow_tf32,
        'grad': torch.is_grad_enabled(),
        'backend': matplotlib.get_backend(),
    }

assert __name__ == '__main__' and sys.argv[1:] == ['--my_flag', '3', 'nothing.py', '--help']
before = state()
for name in MODULES:
    __import__(name)
    after = state()
    if 'fast.kernels' in sys.modules:
        for key in OF_KERNELS:
            after['environment'].pop(key, None)
    changed = [key for key in before if before[key] != after[key]]
    if changed:
        sys.exit(f'import {name} changes {changed}')
assert (batch_size, hide) == ('mine', None)
'''


def modules():
    """All modules of the project but train, which is a script, as in nanoGPT"""
    listed = glob.glob('*.py', root_dir=ROOT)
    for package in ('tasks', 'fast', 'audio', 'lab', 'text', 'page'):
        listed += glob.glob(f'{package}/*.py', root_dir=ROOT)
    names = {path[:-3].replace('/', '.').removesuffix('.__init__') for path in listed}
    assert {'prepare', 'model', 'think', 'score', 'sample', 'fast.kernels', 'lab.bench',
            'page.export'} < names
    return sorted(names - {'train', 'test_smoke'}, reverse=True)  # fast/ among the last


def test_a_program_of_ones_own_can_import_everything(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(MINE.replace('MODULES', repr(modules())))
    flags = '--my_flag', '3', 'nothing.py', '--help'
    p = subprocess.run([sys.executable, path, *flags], cwd=tmp_path, env=environment(),
                       capture_output=True, text=True)
    assert (p.returncode, p.stdout, p.stderr) == (0, '', '')


# --- where a result comes from ---

def test_provenance_names_the_command_and_the_versions(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['/somewhere/train.py', '--out_dir=a b'])
    found = system.provenance()
    assert found['command'] == "train.py '--out_dir=a b'"
    assert found['torch'] == torch.__version__
    assert {'commit', 'python', 'numpy', 'scipy'} <= set(found)

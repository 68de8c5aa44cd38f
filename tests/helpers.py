"""
What several of the tests need: scripts, run as a user would or in this process, and tiny models.
"""
import json
import os
import runpy
import signal
import subprocess
import sys

import torch

import configurator
import results
from model import JMambaConfig, MiniJMamba
from tasks import decode

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TINY = {'d_model': 32, 'd_state': 16, 'head_dim': 16, 'n_head': 2}
TRAIN = [
    '--device=cpu',
    '--max_iters=6',
    '--eval_interval=3',
    '--log_interval=2',
    '--eval_samples=4',
    '--batch_size=4',
    *[f'--{key}={value}' for key, value in TINY.items()],
]


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def texts_of(rows):
    return [decode(row) for row in rows]


def tiny_model(**settings):
    """An untrained model, the same each time"""
    torch.manual_seed(0)
    return MiniJMamba(JMambaConfig(**TINY, **settings)).eval()


def path_of(script):
    return os.path.join(ROOT, script)


def is_one_line(text):
    return len(text.strip().splitlines()) == 1 and 'Traceback' not in text


def run(script, *flags, code=0):
    """Run a script as a user would -> what it prints, errors last. A failure must be one line."""
    command = [sys.executable, path_of(script), *map(str, flags)]
    p = subprocess.run(command, capture_output=True, text=True)
    assert p.returncode == code, p.stdout + p.stderr
    if code:
        assert is_one_line(p.stderr), p.stderr
    return p.stdout + p.stderr


def run_here(script, *flags):
    """Run a script in this process, which need not load torch again -> its exit code and, if that
    is 0, its names"""
    argv, hook = sys.argv, sys.excepthook
    handlers = {n: signal.getsignal(n) for n in (*configurator.caught(), signal.SIGPIPE)}
    sys.argv = [script, *map(str, flags)]
    try:
        return 0, runpy.run_path(path_of(script), run_name='__main__')
    except SystemExit as e:
        return e.code or 0, {}
    finally:
        sys.argv, sys.excepthook = argv, hook
        while results.holding:  # locks end with the process
            results.holding.pop().close()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def output(capsys, script, *flags):
    """Run a script in this process, which must succeed -> what it prints"""
    capsys.readouterr()
    code, _ = run_here(script, *flags)
    printed = capsys.readouterr()
    assert code == 0, printed.out + printed.err
    return printed.out


def refusal(capsys, script, *flags, code=2):
    """Run a script in this process, which must end with one line and this exit code -> the line"""
    capsys.readouterr()
    ended, _ = run_here(script, *flags)
    said = capsys.readouterr().err
    assert ended == code, said
    assert is_one_line(said), said
    return said


def files_in(folder):
    """What a person sees in a folder: no mark"""
    return sorted(name for name in os.listdir(folder) if not name.startswith('.'))


def rows_of(path):
    """A .jsonl file -> its rows"""
    return [json.loads(line) for line in path.read_text().splitlines()]


def is_png(path):
    return path.read_bytes()[:4] == b'\x89PNG'

"""
What several of the tests need: programs, run as a user would or in this process, and tiny models.
"""
import json
import os
import runpy
import signal
import subprocess
import sys
from contextlib import contextmanager

import torch

import system
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


def source_of(program):
    """A program, such as train.py or lab.figures -> its source"""
    path = program if program.endswith('.py') else program.replace('.', '/') + '.py'
    with open(path_of(path), encoding='utf-8') as f:
        return f.read()


def is_one_line(text):
    return len(text.strip().splitlines()) == 1 and 'Traceback' not in text


def command(program, *flags):
    """A program, such as train.py or lab.figures, and its flags -> its command line"""
    how = [path_of(program)] if program.endswith('.py') else ['-m', program]
    return [sys.executable, *how, *map(str, flags)]


def environment(**more):
    """What a program is started with, so that python -m finds it from any folder"""
    return {**os.environ, 'PYTHONPATH': ROOT, **more}


def run(program, *flags, code=0):
    """Run a program as a user would -> what it prints, errors last. A failure must be one line."""
    p = subprocess.run(command(program, *flags), capture_output=True, text=True, env=environment())
    assert p.returncode == code, p.stdout + p.stderr
    if code:
        assert is_one_line(p.stderr), p.stderr
    return p.stdout + p.stderr


@contextmanager
def undone():
    """What a program does to its process is undone afterwards"""
    argv, hook, out = sys.argv, sys.excepthook, sys.stdout
    buffering, errors = out.line_buffering, out.errors
    handlers = {n: signal.getsignal(n) for n in signal.valid_signals()}
    set_handler = signal.signal

    def signal_here(number, handler):
        """A lost connection of a test's own server must not end the process of the tests."""
        deaf = number == signal.SIGPIPE and handler == signal.SIG_DFL
        return set_handler(number, signal.SIG_IGN if deaf else handler)

    signal.signal = signal_here
    try:
        yield
    finally:
        signal.signal = set_handler
        sys.argv, sys.excepthook = argv, hook
        out.reconfigure(line_buffering=buffering, errors=errors)
        while system.holding:  # locks end with the process
            system.holding.pop().close()
        for number, handler in handlers.items():
            if signal.getsignal(number) != handler:
                signal.signal(number, handler)


def run_here(program, *flags):
    """Run a program in this process, which need not load torch again -> its exit code and, if that
    is 0, its names"""
    path = path_of(program)
    if not program.endswith('.py'):
        path = path_of(program.replace('.', '/') + '.py')
    with undone():
        sys.argv = [path, *map(str, flags)]
        try:
            return 0, runpy.run_path(path, run_name='__main__')
        except SystemExit as e:
            return e.code or 0, {}


def output(capsys, program, *flags):
    """Run a program in this process, which must succeed -> what it prints"""
    capsys.readouterr()
    code, _ = run_here(program, *flags)
    printed = capsys.readouterr()
    assert code == 0, printed.out + printed.err
    return printed.out


def refusal(capsys, program, *flags, code=2):
    """Run a program in this process, which must end with one line and this exit code -> the line"""
    capsys.readouterr()
    ended, _ = run_here(program, *flags)
    said = capsys.readouterr().err
    assert ended == code, said
    assert is_one_line(said), said
    return said


def files_in(folder):
    """What a person sees in a folder: no mark of its owner"""
    return sorted(name for name in os.listdir(folder) if not name.startswith('.'))


def rows_of(path):
    """A .jsonl file -> its rows"""
    return [json.loads(line) for line in path.read_text().splitlines()]


def is_png(path):
    return path.read_bytes()[:4] == b'\x89PNG'

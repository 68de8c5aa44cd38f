"""
The machine: its device, signals that ask for an end, files written whole, folders of our own.
"""
import ctypes
import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from importlib.metadata import version

import torch

from configurator import HERE, fail

MARK = '.jericho'  # an empty file, in every folder that this program has made


# --- device ---

def pick_device(device):
    """'auto' is the GPU if there is one, cuda or Apple's mps, under torchrun that of this process.
    The script ends if the one asked for is not there."""
    # No more threads than a container is allowed cores: others only take time from one another.
    with suppress(OSError, ValueError), open('/sys/fs/cgroup/cpu.max') as f:
        share, period = map(int, f.read().split())  # of time; ValueError: there is no limit
        torch.set_num_threads(max(1, min(torch.get_num_threads(), share // period)))
    # glibc gives the memory of a large tensor back, and a fifth of a CPU's time goes into asking
    # for it again: it shall keep blocks of up to 1 GiB (M_MMAP_THRESHOLD), 2 in all (M_TRIM_...).
    with suppress(AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(-3, 2 ** 30)
        ctypes.CDLL(None).mallopt(-1, 2 ** 31 - 1)
    if device == 'auto':
        there = {'cuda': torch.cuda.is_available(), 'mps': torch.backends.mps.is_available()}
        device = next((name for name in there if there[name]), 'cpu')
    if device == 'cuda' and 'LOCAL_RANK' in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        torch.Generator(device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        fail(f"there is no device {device!r} here; use auto, cpu, cuda or mps")
    if device.startswith('cuda:'):
        torch.cuda.set_device(device)
    return device


def pick_dtype(dtype, kind):
    """'auto' is bfloat16 where a GPU has it; the choice is printed."""
    if dtype == 'auto':
        has_it = kind == 'cuda' and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = 'bfloat16' if has_it else 'float32'
        why = "this GPU has no bfloat16" if kind == 'cuda' else f"{kind} gains little from less"
        print(f"dtype {dtype}: {'the GPU has it' if has_it else why}")
    return dtype


# --- ends, and other programs ---

def caught():
    """The signals that ask for an end, but for those that the caller has turned off, as nohup"""
    names = 'SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1'
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [n for n in numbers if signal.getsignal(n) != signal.SIG_IGN]


def catch_signals():
    """From now on Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 only ask for an end -> the list that the exit
    codes go to. A second later they end at once; until then they are the same request, as timeout
    asks twice. An output that nobody reads any more is no reason to end."""
    asked, asked_at = [], 0.0

    def on_signal(number, frame):
        nonlocal asked_at
        if not asked:
            asked.append(128 + number)
            asked_at = time.monotonic()
            with suppress(OSError):  # print() must not interrupt a print().
                os.write(1, b"\nstopping after this iteration; once more to stop at once\n")
        elif time.monotonic() > asked_at + 1:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    for number in caught():
        signal.signal(number, on_signal)
    if hasattr(signal, 'SIGPIPE'):
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    return asked


def say(text, bar):
    """Print a line above a progress bar. If nobody reads any more, what is said goes nowhere."""
    try:
        bar.write(text)
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


@contextmanager
def at_once():
    """What is done with this ends as soon as an end is asked for, and stays unfinished"""
    handlers = {number: signal.getsignal(number) for number in caught()}

    def on_signal(number, frame):
        handlers[number](number, frame)
        raise KeyboardInterrupt

    try:
        for number in handlers:
            signal.signal(number, on_signal)
        with suppress(KeyboardInterrupt):
            yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run_program(script, *flags):
    """Run one of the other scripts; if it fails, end as it did"""
    for number in caught():
        signal.signal(number, signal.SIG_DFL)
    with suppress(OSError):
        print(f"\n$ python {script} {shlex.join(flags)}", flush=True)
    code = subprocess.run([sys.executable, os.path.join(HERE, script), *flags]).returncode
    if code:
        sys.exit(code if code > 0 else 128 - code)


def provenance():
    """What made a result: the command, the commit of this code, the versions -> dict of text"""
    describe = ['git', '-C', HERE, 'describe', '--always', '--dirty', '--abbrev=12']
    commit = ''
    with suppress(OSError):  # there is no git
        commit = subprocess.run(describe, capture_output=True, text=True).stdout.strip()
    return {
        'command': shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]]),
        'commit': commit or 'unknown',
        'python': sys.version.split()[0],
        **{name: version(name) for name in ('torch', 'numpy', 'scipy')},
    }


# --- files ---

def write_whole(path, write):
    """Make a file by write(file), open for bytes: whole or not at all. OSError if that cannot be"""
    try:
        with open(path + '.tmp', 'wb') as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(path + '.tmp', path)
    except BaseException as e:
        with suppress(FileNotFoundError):
            os.remove(path + '.tmp')
        if isinstance(e, RuntimeError):  # what torch makes of a full disk
            raise OSError(errno.ENOSPC, 'the disk is full?') from e
        raise


def write_text(path, text):
    write_whole(path, lambda f: f.write(text.encode()))


def write_json(path, contents):
    write_text(path, json.dumps(contents, indent=1))


# --- folders: of our own, and of one run at a time ---

holding = []  # locks, each an open file; they end with the process, however it ends


def claim(folder):
    """Make a folder, mark it as this program's, and hold it for this process. ValueError if another
    run holds it, or if it has files and no mark: these are somebody's own."""
    os.makedirs(folder, exist_ok=True)
    mark = os.path.join(folder, MARK)
    theirs = [name for name in os.listdir(folder) if not name.startswith('.')]
    if theirs and not os.path.exists(mark):
        raise ValueError(f"{folder} has files that this program did not make; give another folder, "
                         "or one that is empty or not there yet")
    lock = open(mark, 'a')
    try:
        import fcntl
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows has no such locks
        pass
    except OSError:
        lock.close()
        raise ValueError(f"another run writes to {folder} now; wait for its end, or write "
                         "elsewhere") from None
    holding.append(lock)


def clear(folder, pattern):
    """Remove from a claimed folder the files whose whole name fits the pattern"""
    for name in os.listdir(folder):
        if re.fullmatch(pattern, name):
            os.remove(os.path.join(folder, name))

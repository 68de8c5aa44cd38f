"""
Config files and flags over a script's globals, as in nanoGPT:

$ python train.py config/mirror.py --batch_size=32

The script's own settings are its lower-case globals of type int, float, bool or str at the time of
the call. A config file is Python that assigns to them; it may import and define functions, other
names must begin with _, and base('mod') applies config/mod.py first. A --key=value overrides what
stands before it on the line. Files and flags are held to the same rules: the key must exist, and
the value must have the type of the default (an int will do for a float). Anything else ends the
script with one line and exit code 2. --help prints the settings with their comments.
"""
import difflib
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import types
from contextlib import contextmanager, suppress

import torch

if sys.version_info < (3, 10):
    sys.exit(f"Jericho needs Python 3.10 or later; this is {sys.version.split()[0]}")
os.environ['MPLBACKEND'] = 'agg'  # pictures are only written, whatever that was set to

HERE = os.path.dirname(os.path.abspath(__file__))
SEEDS = (0, 2 ** 63 - 1)  # that torch's generators take


def fail(message, code=2):
    """End the script with one line on stderr, the way every error that a user can cause ends"""
    print(f"{os.path.basename(sys.argv[0])}: error: {message}", file=sys.stderr)
    sys.exit(code)


# --- checks of settings ---

def bounds(settings, **limits):
    """End the script unless each setting named lies within its limits: the lowest, or (lowest,
    highest)"""
    for key, limit in limits.items():
        low, high = limit if isinstance(limit, tuple) else (limit, float('inf'))
        if not low <= settings[key] <= high:
            most = f" and at most {high}" if high < float('inf') else ''
            fail(f"{key} must be at least {low}{most}, not {settings[key]}")


def choices(settings, **allowed):
    """End the script unless each setting named is one of those allowed"""
    for key, names in allowed.items():
        if settings[key] not in names:
            fail(f"{key} is {' or '.join(filter(None, names))}, not {settings[key]!r}")


def names_of(settings, key, allowed):
    """A setting that holds names with a comma between them -> a list; each must be allowed"""
    names = settings[key].split(',') if settings[key] else []
    for i, name in enumerate(names):
        if name not in allowed or name in names[:i]:
            some = f"some of {', '.join(allowed)}, each once" if allowed else "none here"
            fail(f"{key} are {some}, not {name!r}")
    return names


def for_each(settings, key, names, kind):
    """A setting that holds one number for all names, or one for each -> {name: number}"""
    try:
        numbers = [kind(x) for x in settings[key].split(',')]
        if len(numbers) == 1:
            numbers *= len(names)
        if len(numbers) == len(names) and all(0 <= x <= 10000 for x in numbers):
            return dict(zip(names, numbers, strict=True))
    except ValueError:
        pass
    example = ','.join('1' for _ in names)
    fail(f"{key} takes a number from 0 to 10000 for all tasks or one for each, such as {example}, "
         f"not {settings[key]!r}")


def pick_device(device):
    """'auto' is the GPU if there is one, cuda or Apple's mps, under torchrun that of this process.
    The script ends if the one asked for is not there."""
    # No more threads than a container is allowed cores: others only take time from one another.
    try:
        with open('/sys/fs/cgroup/cpu.max') as f:
            share, period = map(int, f.read().split())
        torch.set_num_threads(max(1, min(torch.get_num_threads(), share // period)))
    except (OSError, ValueError):  # there is no limit
        pass
    if device == 'auto':
        there = {'cuda': torch.cuda.is_available(), 'mps': torch.backends.mps.is_available()}
        device = next((name for name in there if there[name]), 'cpu')
    if device == 'cuda' and 'LOCAL_RANK' in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        if device != 'cpu':  # which has no number
            torch.Generator(device)
            torch.empty(1, device=device)
            if device.startswith('cpu'):
                raise RuntimeError
    except (RuntimeError, AssertionError):
        fail(f"there is no device {device!r} here; use auto, cpu, cuda or mps")
    if device.startswith('cuda:'):
        torch.cuda.set_device(device)
    return device


def pick_dtype(dtype, kind):
    """'auto' is bfloat16 where a GPU has it; the choice is printed."""
    if dtype == 'auto':
        has_bf16 = kind == 'cuda' and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = 'bfloat16' if has_bf16 else 'float32'
        no_bf16 = "this GPU has no bfloat16" if kind == 'cuda' else f"{kind} gains little from less"
        why = "the GPU has it" if has_bf16 else no_bf16
        print(f"dtype {dtype}: {why}")
    return dtype


def run_name(tasks, seed):
    """What a run's folder is called: its config file, or else its tasks; and the seed"""
    name = tasks
    files = [a for a in sys.argv[1:] if not a.startswith('-')]
    if files:
        path = os.path.splitext(os.path.abspath(files[-1]))[0]
        name = os.path.relpath(path, os.path.join(HERE, 'config'))
        if name.startswith(os.pardir):  # the file lies elsewhere
            name = os.path.basename(path)
    return name if seed == 1337 else f'{name}_s{seed}'


def run_script(script, *flags):
    """Run one of the other scripts; if it fails, end as it did"""
    for number in caught():
        signal.signal(number, signal.SIG_DFL)
    print(f"\n$ python {script} {shlex.join(flags)}", flush=True)
    code = subprocess.run([sys.executable, os.path.join(HERE, script), *flags]).returncode
    if code:
        sys.exit(code if code > 0 else 128 - code)


# --- ends ---

def catch_signals():
    """From now on Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 only ask for an end -> the list that the exit
    codes go to. A second later they end at once; until then they are the same request, as timeout
    asks twice. An output that nobody reads any more is no reason to end."""
    ends = []
    asked_at = math.inf

    def on_signal(number, frame):
        nonlocal asked_at
        if not ends:
            ends.append(128 + number)
            asked_at = time.monotonic()
            with suppress(OSError):  # print() must not interrupt a print().
                os.write(1, b"\nstopping after this iteration; once more to stop at once\n")
        elif time.monotonic() > asked_at + 1:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    for number in caught():
        signal.signal(number, on_signal)
    if hasattr(signal, 'SIGPIPE'):  # Windows has none
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    return ends


def say(text, bar):
    """Print a line above a progress bar. If nobody reads any more, what is said goes nowhere."""
    try:
        bar.write(text)
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def caught():
    """The signals that ask for an end, but for those that the caller has turned off, as nohup"""
    names = 'SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1'
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [n for n in numbers if signal.getsignal(n) != signal.SIG_IGN]


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
        yield
    except KeyboardInterrupt:
        pass
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


# --- settings ---

def convert(key, value, default, where):
    """`value`, which may be text from a flag, as the type of `default`"""
    kind = type(default)
    words = {'true': True, 'false': False}
    try:
        if kind is bool and isinstance(value, str):
            return words[value.lower()]
        if kind in (int, float) and isinstance(value, str):
            return kind(value)
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is kind:
            in_home = kind is str and value.startswith('~/')
            return os.path.expanduser(value) if in_home else value
    except (KeyError, ValueError):
        pass
    expected = {bool: 'true or false', int: 'an integer', float: 'a number', str: 'text'}[kind]
    fail(f"{where}: {key} takes {expected}, not {value!r}")


def run_config(path):
    """Run a config file -> its names, those of the configs it builds on first"""
    scope = {}

    def base(name):
        scope.update(run_config(os.path.join(HERE, 'config', name + '.py')))

    scope['base'] = base
    try:
        with open(path, encoding='utf-8-sig') as f:
            exec(compile(f.read(), path, 'exec'), scope)
    except OSError as e:
        fail(f"cannot read the config file {e.filename or path}: {e.strerror}")
    except Exception as e:
        fail(f"config file {path}: {type(e).__name__}: {e}")
    return {k: v for k, v in scope.items() if not k.startswith('_') and not callable(v)
            and not isinstance(v, types.ModuleType)}


def show_help(settings, keys):
    """A script's docstring, and each setting's line with its comment, if it has one"""
    with open(settings['__file__'], encoding='utf-8') as f:
        script = f.read()
    # Functions may have variables of the same names.
    indented = script.partition('\nif __name__')[2]
    print(settings['__doc__'].strip() + '\n\nsettings:')
    for key in keys:
        line = (re.search(rf'^{key} = (.*)$', script, re.M)
                or re.search(rf'^    {key} = (.*)$', indented, re.M))
        print(f"  --{key}={line.group(1) if line else repr(settings[key])}")


def quietly(kind, error, trace):
    """Ctrl-C is no error; an output that is not read, or a full disk below it, is none of ours"""
    if kind is KeyboardInterrupt:
        os._exit(130)  # as shells know it
    if kind is BrokenPipeError:
        os._exit(141)
    if kind is OSError:  # those that a file's name causes are of other kinds
        print(f"{os.path.basename(sys.argv[0])}: error: {error.strerror}", file=sys.stderr)
        os._exit(1)
    sys.__excepthook__(kind, error, trace)


def configure(settings, argv=None):
    """Apply config files and flags to `settings` (a script's globals(), changed in place)
    -> dict of the result. From now on the script ends quietly if its output is not read."""
    argv = sys.argv[1:] if argv is None else argv
    sys.excepthook = quietly
    sys.stdout.reconfigure(line_buffering=True, errors='backslashreplace')
    if hasattr(signal, 'SIGPIPE'):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    kinds = (int, float, bool, str)
    keys = [k for k, v in settings.items() if re.fullmatch('[a-z]\\w*', k) and type(v) in kinds]

    def assign(key, value, where):
        if key not in keys:
            near = difflib.get_close_matches(key, keys, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else "--help lists them"
            fail(f"{where}: there is no setting {key!r}; {hint}")
        settings[key] = convert(key, value, settings[key], where)

    for arg in argv:
        if arg.startswith('~/'):
            arg = os.path.expanduser(arg)
        if arg in ('--help', '-h'):
            show_help(settings, keys)
            sys.exit(0)
        if arg.startswith('--'):
            key, equals, value = arg[2:].partition('=')
            if not equals:
                fail(f"{arg}: write it as --{key}=value")
            assign(key, value, arg)
        else:
            for key, value in run_config(arg).items():
                assign(key, value, arg)
    return {k: settings[k] for k in keys}

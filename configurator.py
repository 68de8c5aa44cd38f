"""
Config files and flags over a script's globals, as in nanoGPT:

$ python train.py config/mirror.py --batch_size=32

The script's own settings are its lower-case globals of type int, float, bool or str at the time of the call. A config file
is Python that assigns to them (it may import and define functions; other names must begin with _); a --key=value overrides what stands before it on the line. Both are held to the same
rules: the key must exist, and the value must have the type of the default (an int will do for a float). Anything
else ends the script with one line and exit code 2. --help prints the settings with their comments.
"""
import difflib
import os
import platform
import re
import shlex
import subprocess
import sys
import types
from importlib.metadata import version


def fail(message, code=2):
    """End the script with one line on stderr, the way every error that a user can cause ends"""
    print(f"{os.path.basename(sys.argv[0])}: error: {message}", file=sys.stderr)
    sys.exit(code)


def provenance():
    """What made a result: the command, the commit of this code, the versions -> dict of text"""
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        git = subprocess.run(['git', '-C', here, 'describe', '--always', '--dirty', '--abbrev=12'], capture_output=True, text=True)
        commit = git.stdout.strip() or 'unknown'
    except OSError:  # there is no git
        commit = 'unknown'
    return {'command': shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]]), 'commit': commit,
            'python': platform.python_version(), **{name: version(name) for name in ('torch', 'numpy', 'scipy')}}


def bounds(settings, **limits):
    """End the script unless each setting named lies within its limits: the lowest, or (lowest, highest)"""
    for key, limit in limits.items():
        low, high = limit if isinstance(limit, tuple) else (limit, float('inf'))
        if not low <= settings[key] <= high:
            fail(f"{key} must be at least {low}" + (f" and at most {high}" if high < float('inf') else '') + f", not {settings[key]}")


SEEDS = (0, 2 ** 63 - 1)  # that torch's generators take


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
            return value
    except (KeyError, ValueError):
        pass
    expected = {bool: 'true or false', int: 'an integer', float: 'a number', str: 'text'}[kind]
    fail(f"{where}: {key} takes {expected}, not {value!r}")


def configure(settings, argv=None):
    """Apply config files and flags to `settings` (a script's globals(), changed in place) -> dict of the result"""
    argv = sys.argv[1:] if argv is None else argv
    show = sys.excepthook  # Ctrl-C is no error: end quietly, with the exit code that shells know it by
    sys.excepthook = lambda kind, e, trace: os._exit(130) if kind is KeyboardInterrupt else show(kind, e, trace)
    kinds = (int, float, bool, str)
    keys = [k for k, v in settings.items() if re.fullmatch('[a-z]\\w*', k) and type(v) in kinds]

    def assign(key, value, where):
        if key not in keys:
            near = difflib.get_close_matches(key, keys, 1, 0.5)
            fail(f"{where}: there is no setting {key!r}" + (f"; did you mean {near[0]!r}?" if near else
                                                            "; --help lists them"))
        settings[key] = convert(key, value, settings[key], where)

    for arg in argv:
        if arg in ('--help', '-h'):
            with open(settings['__file__']) as f:
                source = f.read()
            print(settings['__doc__'].strip() + '\n\nsettings:')
            for key in keys:
                line = re.search(rf'^ *{key} *= *(.*)$', source, re.M)
                print(f"  --{key}={line.group(1) if line else settings[key]}")
            sys.exit(0)
        if arg.startswith('--'):
            key, eq, value = arg[2:].partition('=')
            if not eq:
                fail(f"{arg}: write it as --{key}=value")
            assign(key, value, arg)
            continue
        scope = {}
        try:
            with open(arg) as f:
                exec(compile(f.read(), arg, 'exec'), scope)
        except OSError as e:
            fail(f"cannot read the config file {e.filename or arg}: {e.strerror}")
        except Exception as e:
            fail(f"config file {arg}: {type(e).__name__}: {e}")
        for key, value in scope.items():
            if not key.startswith('_') and not callable(value) and not isinstance(value, types.ModuleType):
                assign(key, value, arg)
    return {k: settings[k] for k in keys}

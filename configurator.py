"""
Config files and flags over a script's settings, as in nanoGPT:

$ python train.py config/mirror.py --batch_size=32

Settings are a script's lower-case globals of type int, float, bool or str, in a block that begins
with a line `# --- settings ---` and ends with `config = configure(globals())`, above those imports
that take seconds. A config file is Python that assigns to settings; it may import and define
functions, its other names begin with _, and base('mod') applies config/mod.py first. Of files and
flags the later one counts. A key must exist, and a value must have the type of the default (an int
will do for a float): anything else ends the script with one line and exit code 2. Where the script
is only imported, nothing of all this happens.
"""
import difflib
import os
import signal
import sys
import types
from contextlib import suppress

HERE = os.path.dirname(os.path.abspath(__file__))
SEEDS = (0, 2 ** 63 - 1)  # that torch's generators take
KINDS = {bool: 'true or false', int: 'an integer', float: 'a number', str: 'text'}
WORDS = {'true': True, 'false': False}
HELP = '--help', '-h'


def fail(message, code=2):
    """End the script with one line on stderr, the way every error that a user can cause ends"""
    print(f"{os.path.basename(sys.argv[0])}: error: {message}", file=sys.stderr)
    sys.exit(code)


# --- checks of settings: each ends the script if one is wrong ---

def bounds(settings, **limits):
    """Each setting named must lie within its limits: the lowest, or (lowest, highest)"""
    for key, limit in limits.items():
        low, high = limit if isinstance(limit, tuple) else (limit, float('inf'))
        if not low <= settings[key] <= high:
            most = f" and at most {high}" if high < float('inf') else ''
            fail(f"{key} must be at least {low}{most}, not {settings[key]}")


def choices(settings, **allowed):
    """Each setting named must be one of those allowed"""
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
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= len(names)
    if len(numbers) != len(names) or not all(0 <= x <= 10000 for x in numbers):
        fail(f"{key} takes a number from 0 to 10000 for all tasks or one for each, such as "
             f"{','.join('1' * len(names))}, not {settings[key]!r}")
    return dict(zip(names, numbers, strict=True))


# --- reading them ---

def convert(key, value, default, where):
    """`value`, which is text if it comes from a flag, as the type of `default`"""
    kind = type(default)
    if kind is bool and isinstance(value, str):
        value = WORDS.get(value.lower(), value)
    elif kind is str and isinstance(value, str):
        value = os.path.expanduser(value)
    elif kind in (int, float) and type(value) in (int, str):
        with suppress(ValueError, OverflowError):
            value = kind(value)
    if type(value) is not kind:
        fail(f"{where}: {key} takes {KINDS[kind]}, not {value!r}")
    return value


def run_config(path):
    """Run a config file -> its names, those of the configs it builds on first"""
    # base(name) brings in the names of another config.
    scope = {'base': lambda name: scope.update(run_config(f'{HERE}/config/{name}.py'))}
    try:
        with open(path, encoding='utf-8-sig') as f:
            exec(compile(f.read(), path, 'exec'), scope)
    except OSError as e:
        fail(f"cannot read the config file {e.filename or path}: {e.strerror}")
    except Exception as e:
        fail(f"config file {path}: {type(e).__name__}: {e}")
    return {key: value for key, value in scope.items()
            if key[0] != '_' and not callable(value) and not isinstance(value, types.ModuleType)}


def show_help(settings, keys):
    """Print a script's docstring and the block of its settings as it stands there, but with the
    values that they have now"""
    print(settings['__doc__'].strip() + '\n')
    with open(settings['__file__'], encoding='utf-8') as f:
        block = f.read().partition('\n# --- settings')[2]
    for line in block.splitlines()[1:]:
        if 'configure(globals()' in line:
            return
        key, _, default = line.partition(' = ')
        if key in keys:
            setting = f'--{key}={settings[key]}'
            comment = default.partition('  #')[2]
            line = f'{setting:28} #{comment}' if comment else setting
        print(line)


def quietly(kind, error, trace):
    """Ctrl-C and a reader that went away are no errors, and a full disk below is none of ours"""
    codes = {KeyboardInterrupt: 130, BrokenPipeError: 141}  # as shells know them
    if kind in codes:
        os._exit(codes[kind])
    if kind is OSError:  # those that a file's name causes are of other kinds
        print(f"{os.path.basename(sys.argv[0])}: error: {error.strerror}", file=sys.stderr)
        os._exit(1)
    sys.__excepthook__(kind, error, trace)


def given(argv):
    """Flags and config files -> (key, value, where that stands), in their order"""
    for arg in argv:
        if not arg.startswith('-'):
            for key, value in run_config(os.path.expanduser(arg)).items():
                yield key, value, arg
        elif arg not in HELP:
            key, equals, value = arg.partition('=')
            if not equals or not key.startswith('--'):
                fail(f"{arg}: write it as --{key.lstrip('-')}=value")
            yield key[2:], value, arg


def configure(settings, argv=None):
    """Apply config files and flags to `settings` (a script's globals(), changed in place)
    -> dict of the result. It also makes the script end quietly if its output is not read."""
    keys = [key for key, value in settings.items() if key[0].islower() and type(value) in KINDS]
    if settings['__name__'] == '__main__':
        sys.excepthook = quietly
        sys.stdout.reconfigure(line_buffering=True, errors='backslashreplace')
        if hasattr(signal, 'SIGPIPE'):  # Windows has none
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        argv = sys.argv[1:] if argv is None else argv
        for key, value, where in given(argv):
            if key not in keys:
                near = difflib.get_close_matches(key, keys, 1, 0.5)
                hint = f"did you mean {near[0]!r}?" if near else "--help lists them"
                fail(f"{where}: there is no setting {key!r}; {hint}")
            settings[key] = convert(key, value, settings[key], where)
        if set(HELP) & set(argv):
            show_help(settings, keys)
            sys.exit(0)
    return {key: settings[key] for key in keys}

"""
Config files and flags over a script's settings, as in nanoGPT:

$ python train.py config/mirror.py --batch_size=32

A script's settings are its lower-case globals of type int, float, bool or str. They stand at its
top, above `import torch`, which takes seconds, and are followed by

    config = configure(globals())

A config file is Python that assigns to settings; it may import and define functions, its other
names begin with _, and base('mod') applies config/mod.py first. A --key=value overrides what stands
before it on the line. Files and flags are held to the same rules: the key must exist, and the value
must have the type of the default (an int will do for a float). Anything else ends the script with
one line and exit code 2. --help prints the settings as they stand in the script.

Where the script is only imported, nothing of all this happens.
"""
import difflib
import os
import re
import signal
import sys
import types

HERE = os.path.dirname(os.path.abspath(__file__))
SEEDS = (0, 2 ** 63 - 1)  # that torch's generators take
KINDS = {bool: 'true or false', int: 'an integer', float: 'a number', str: 'text'}
WORDS = {'true': True, 'false': False}


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


# --- reading them ---

def convert(key, value, default, where):
    """`value`, which is text if it comes from a flag, as the type of `default`"""
    kind = type(default)
    try:
        if kind is str and isinstance(value, str):
            return os.path.expanduser(value) if value.startswith('~/') else value
        if kind is bool and isinstance(value, str):
            return WORDS[value.lower()]
        if kind in (int, float) and isinstance(value, str):
            return kind(value)
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is kind:
            return value
    except (KeyError, ValueError):
        pass
    fail(f"{where}: {key} takes {KINDS[kind]}, not {value!r}")


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
    found = {}
    for key, value in scope.items():
        is_tool = callable(value) or isinstance(value, types.ModuleType)
        if not key.startswith('_') and not is_tool:
            found[key] = value
    return found


def show_help(settings, keys):
    """Print a script's docstring and the block of its settings, line by line as they stand there,
    with the values that they have now"""
    print(settings['__doc__'].strip() + '\n')
    with open(settings['__file__'], encoding='utf-8') as f:
        lines = f.read().partition('\n# --- settings')[2].splitlines()[1:]
    for line in lines:
        if 'configure(globals()' in line:
            return
        found = re.match(r'(\w+) = (.*?)(  +#.*)?$', line)
        if not found:
            print(line)
        elif found[1] in keys:
            setting = f'--{found[1]}={settings[found[1]]}'
            comment = (found[3] or '').strip()
            print(f'{setting:28} {comment}'.rstrip())


def quietly(kind, error, trace):
    """Ctrl-C is no error: end with the exit code that shells know it by"""
    if kind is KeyboardInterrupt:
        os._exit(130)
    sys.__excepthook__(kind, error, trace)


def configure(settings, argv=None):
    """Apply config files and flags to `settings` (a script's globals(), changed in place)
    -> dict of the result. It also makes the script end quietly if its output is not read."""
    names = [key for key in settings if re.fullmatch('[a-z]\\w*', key)]
    keys = [key for key in names if type(settings[key]) in KINDS]
    if settings['__name__'] != '__main__':
        return {key: settings[key] for key in keys}

    sys.excepthook = quietly
    sys.stdout.reconfigure(line_buffering=True, errors='backslashreplace')
    if hasattr(signal, 'SIGPIPE'):  # Windows has none
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)

    def assign(key, value, where):
        if key not in keys:
            near = difflib.get_close_matches(key, keys, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else "--help lists them"
            fail(f"{where}: there is no setting {key!r}; {hint}")
        settings[key] = convert(key, value, settings[key], where)

    argv = sys.argv[1:] if argv is None else argv
    asks_for_help = {'--help', '-h'}
    for arg in argv:
        key, equals, value = arg.removeprefix('--').partition('=')
        if arg in asks_for_help:
            continue
        if not arg.startswith('-'):
            for key, value in run_config(os.path.expanduser(arg)).items():
                assign(key, value, arg)
        elif equals and arg.startswith('--'):
            assign(key, value, arg)
        else:
            fail(f"{arg}: write it as --{key.lstrip('-')}=value")
    if asks_for_help & set(argv):
        show_help(settings, keys)
        sys.exit(0)
    return {key: settings[key] for key in keys}

"""
Results on disk: written whole, by one run at a time, and never in the place of a person's own file.
"""
import errno
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import zlib
from contextlib import suppress
from importlib.metadata import version

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

HERE = os.path.dirname(os.path.abspath(__file__))
WRITTEN = '.written'  # the list, in each folder, of the files that these scripts wrote there


def provenance():
    """What made a result: the command, the commit of this code, the versions -> dict of text"""
    describe = ['git', '-C', HERE, 'describe', '--always', '--dirty', '--abbrev=12']
    try:
        git = subprocess.run(describe, capture_output=True, text=True)
        commit = git.stdout.strip() or 'unknown'
    except OSError:  # there is no git
        commit = 'unknown'
    return {
        'command': shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]]),
        'commit': commit,
        'python': platform.python_version(),
        **{name: version(name) for name in ('torch', 'numpy', 'scipy')},
    }


# --- whole files ---

def write_whole(path, write):
    """Make a file by write(file), open for bytes: whole or not at all. OSError if that cannot be"""
    try:
        with open(path + '.tmp', 'wb') as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(path + '.tmp', path)
    except BaseException as e:
        if os.path.exists(path + '.tmp'):
            os.remove(path + '.tmp')
        if isinstance(e, RuntimeError):  # what torch makes of a full disk
            raise OSError(errno.ENOSPC, 'the disk is full?') from e
        raise


def write_json(path, contents):
    text = json.dumps(contents, indent=1).encode()
    write_whole(path, lambda f: f.write(text))


def rows_in(path):
    """The rows of a .jsonl file, dicts; those that were not written to their end are left out"""
    rows = []
    with open(path, encoding='utf-8', errors='replace') as f:
        for line in f:
            with suppress(ValueError, RecursionError):
                rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


# --- files that are ours ---

def entry(path):
    """A file's line in the list: its checksum, which changes if a person changes it, and name"""
    checksum = 0
    with open(path, 'rb') as f:
        while block := f.read(2 ** 20):
            checksum = zlib.crc32(block, checksum)
    return f'{checksum:08x} {os.path.basename(path)}'


def listed(folder):
    try:
        with open(os.path.join(folder, WRITTEN), encoding='utf-8', errors='replace') as f:
            return set(f.read().splitlines())
    except FileNotFoundError:
        return set()


def must_be_ours(paths, folder):
    """ValueError if these scripts did not write one of these files of a folder, as far as there are
    such"""
    there = [path for path in paths if os.path.exists(path)]
    ours = listed(folder) if there else set()
    for path in there:
        if os.path.isdir(path) or entry(path) not in ours:
            raise ValueError(f"{path} is in the way: this program did not write it, or it has been "
                             "changed since; move it, or write elsewhere")


def note_as_ours(path):
    with open(os.path.join(os.path.dirname(path), WRITTEN), 'a', encoding='utf-8') as f:
        f.write(entry(path) + '\n')


def write_ours(path, write):
    """write_whole, but never over a file that is not ours: ValueError"""
    must_be_ours([path], os.path.dirname(path))
    write_whole(path, write)
    note_as_ours(path)


def fresh_folder(folder, pattern):
    """Make a folder, or remove the files whose whole name fits the pattern: those of an earlier,
    perhaps larger set. ValueError, and all stays as it is, if one of them is not ours."""
    os.makedirs(folder, exist_ok=True)
    paths = [os.path.join(folder, n) for n in os.listdir(folder) if re.fullmatch(pattern, n)]
    must_be_ours(paths, folder)
    for path in paths:
        os.remove(path)


# --- one run at a time ---

def clear_results(folder, overwrite):
    """Remove what an earlier training left in a folder, as it must not pass for that of the next.
    ValueError if it may not be overwritten."""
    results = r'(best|ckpt)\.pt|(scores|sounds|lengths|summary)\.json'
    found = [name for name in sorted(os.listdir(folder)) if re.fullmatch(results, name)]
    if found and not overwrite:
        raise ValueError(f"{folder} holds an earlier run ({', '.join(found)}): go on with it by "
                         "--init_from=resume, replace it by --overwrite=true, or give another "
                         "--out_dir")
    for name in found:
        os.remove(os.path.join(folder, name))


holding = []  # locks, each an open file; they end with the process, however it ends


def hold(folder):
    """Make a folder and hold it for this process. ValueError if another one holds it."""
    os.makedirs(folder, exist_ok=True)
    lock = open(os.path.join(folder, '.lock'), 'w')
    try:
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise ValueError(f"another run writes to {folder} now; wait for its end, or write "
                         "elsewhere") from None
    holding.append(lock)

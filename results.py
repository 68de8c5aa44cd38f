"""
Results on disk: written whole, by one run at a time, and never into a person's own folder.
"""
import errno
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

HERE = os.path.dirname(os.path.abspath(__file__))
MARK = '.jericho'  # an empty file, in every folder that this program has made


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


# --- folders: of our own, and of one run at a time ---

holding = []  # locks, each an open file; they end with the process, however it ends


def claim(folder):
    """Make a folder, mark it as one that this program made, and hold it for this process, so that
    no other run writes to it. ValueError if another run holds it, or if it has files and no mark:
    these are somebody's own."""
    os.makedirs(folder, exist_ok=True)
    mark = os.path.join(folder, MARK)
    theirs = [name for name in os.listdir(folder) if not name.startswith('.')]
    if theirs and not os.path.exists(mark):
        raise ValueError(f"{folder} has files that this program did not make; give another folder, "
                         "or one that is empty or not there yet")
    lock = open(mark, 'a')
    try:
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise ValueError(f"another run writes to {folder} now; wait for its end, or write "
                         "elsewhere") from None
    holding.append(lock)


def clear(folder, pattern):
    """Remove from a claimed folder the files whose whole name fits the pattern: those of an
    earlier, perhaps larger set"""
    for name in os.listdir(folder):
        if re.fullmatch(pattern, name):
            os.remove(os.path.join(folder, name))


def clear_results(folder, overwrite):
    """Remove what an earlier training left in a folder, as it must not pass for that of the next.
    ValueError if it may not be overwritten."""
    results = r'(best|ckpt)\.pt|(scores|sounds|lengths|summary)\.json'
    found = [name for name in sorted(os.listdir(folder)) if re.fullmatch(results, name)]
    if found and not overwrite:
        raise ValueError(f"{folder} holds an earlier run ({', '.join(found)}): go on with it by "
                         "--init_from=resume, replace it by --overwrite=true, or give another "
                         "--out_dir")
    clear(folder, results)

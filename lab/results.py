"""
The numbers of README.md and RESULTS.md, written from records of the runs that made them.

$ python score.py --init_from=release                      # makes numbers
$ python -m lab.results --add=release --of=out/release     # keeps them: records/release/
$ python -m lab.results                                    # writes them into the pages
$ python -m lab.results --check=true                       # or says what differs; exit code 1

A record is a folder in records/: what score.py wrote (scores.json, sounds.json, lengths.json,
scores_mod_length_100.json, ...), and record.json, which says for each of them the command, the
commit, the seed and the machine. Where two ask the same, the one of more questions counts.

What a page says between <!-- records: table --> and <!-- end --> is records/table.md, with numbers
for the names in braces. A name is record/task/test:

    {release/mod/iid}          the last five cells of a row: exact match in per cent, its 95 %
                               interval, questions, and the exact match of a plain wire and of the
                               best plain shortcut
    {release/mod/iid:score}    the exact match alone
    {release/mod/iid:count}    such as 998 of 1,000
"""
from configurator import HERE, configure, fail

# --- settings ---
add = ''      # name of a record to make, or to add to
of = ''       # the folder of the results that go into it
machine = ''  # which made them, in a line; '' describes this one
commit = ''   # of the code that made them, if they do not say so themselves
check = False  # write nothing, and say what differs
configure(globals())

# isort: split
import difflib
import json
import math
import os
import platform
import re

import torch

from system import write_json, write_text

PAGES = 'README.md', 'RESULTS.md'
SCORES = re.compile(r'(scores|sounds|lengths)(_.+)?\.json')  # what score.py writes
KEPT = 'exact_match', 'n', 'distinct', 'wire', 'shortcuts', 'passes', 'stopped'  # of each test
BLOCK = re.compile(r'(<!-- records: (\S+) -->\n)(.*?)(<!-- end -->)', re.DOTALL)
MARK = re.compile(r'<!-- (?:records: \S+|end) -->')
NAME = re.compile(r'\{([^{}]+?)(?::(\w+))?\}')


# --- records ---

def describe_machine():
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'
    return f'{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {gpu}'


def files_in(folder):
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def read(path):
    """A JSON file. ValueError if it is not there, or is none."""
    try:
        with open(path, encoding='utf-8') as f:
            return json.load(f)
    except OSError as e:
        raise ValueError(f"cannot read {path}: {e.strerror}") from None
    except ValueError as e:
        raise ValueError(f"{path} is no JSON: {e}") from None


def add_record(record, of, machine='', commit=''):
    """Copy results from the folder `of` into the folder of a record -> their files. ValueError if
    there are none, or if nobody could make them again."""
    said = os.path.join(record, 'record.json')
    about = read(said) if os.path.exists(said) else {}
    copies = {}
    for name in filter(SCORES.fullmatch, files_in(of)):
        made = read(os.path.join(of, name))
        if not {'scores', 'commit'} <= set(made):
            raise ValueError(f"{name} in {of} is not by score.py")
        scores = made.pop('scores')
        copies[name] = {
            task: {test: {key: r[key] for key in KEPT if key in r} for test, r in tests.items()}
            for task, tests in scores.items()
        }
        made['commit'] = commit or made['commit']
        if not re.fullmatch('[0-9a-f]{7,40}', made['commit']):
            raise ValueError(f"{name} is by commit {made['commit']!r}, which nobody can check out: "
                             "commit first and score again, or give the --commit")
        about[name] = {**made, 'machine': machine or describe_machine()}
    if not copies:
        raise ValueError(f"{of} has no scores.json: python score.py writes it")
    os.makedirs(record, exist_ok=True)
    for name, scores in copies.items():
        write_json(os.path.join(record, name), scores)
    write_json(said, about)
    return list(copies)


def read_records(folder):
    """A folder of records -> {'record/task/test': its result}"""
    found = {}
    for record in files_in(folder):
        for name in filter(SCORES.fullmatch, files_in(os.path.join(folder, record))):
            for task, tests in read(os.path.join(folder, record, name)).items():
                for test, result in tests.items():
                    key = f'{record}/{task}/{test}'
                    other = found.get(key, result)
                    if other['n'] == result['n'] and other != result:
                        raise ValueError(f"two files say what {key} is: remove one of them")
                    found[key] = max(result, other, key=lambda r: r['n'])
    return found


# --- numbers ---

def wilson(right, n):
    """The 95 % interval of a share that was `right` of n times so (Wilson, 1927) -> two shares"""
    z = 1.96
    middle = right + z ** 2 / 2
    half = z * math.sqrt(right * (n - right) / n + z ** 2 / 4)
    return max(0.0, (middle - half) / (n + z ** 2)), min(1.0, (middle + half) / (n + z ** 2))


def percent(share):
    return f'{100 * share:.1f}'.removesuffix('.0')


def count(result):
    n = result['n']
    return f"{round(n * result['exact_match']):,} of {n:,}"


def score(result):
    return percent(result['exact_match'])


def cells(result):
    n = result['n']
    low, high = wilson(round(n * result['exact_match']), n)
    tried = result['shortcuts'].values()
    shortcut = percent(max(tried)) if tried else ''
    interval = f'{percent(low)} to {percent(high)}'
    return ' | '.join([score(result), interval, f'{n:,}', percent(result['wire']), shortcut])


FORMS = {None: cells, 'score': score, 'count': count}


# --- pages ---

def fill(path, results):
    """The text of a template, with numbers for names"""
    try:
        with open(path, encoding='utf-8') as f:
            template = f.read()
    except OSError as e:
        raise ValueError(f"cannot read {path}: {e.strerror}") from None

    def number(found):
        name, form = found.groups()
        if name not in results or form not in FORMS:
            raise ValueError(f"{path} names {found[0]}, which no record has")
        return FORMS[form](results[name])

    return NAME.sub(number, template)


def written(root):
    """The pages below root as they should be -> {path: (text as it is, as it should be)}.
    ValueError, and nothing is written, if a record or a mark is missing."""
    folder = os.path.join(root, 'records')
    results = read_records(folder)
    pages = {}
    for page in PAGES:
        path = os.path.join(root, page)
        with open(path, encoding='utf-8') as f:
            text = f.read()
        if len(MARK.findall(text)) != 2 * len(BLOCK.findall(text)):
            raise ValueError(f"{page}: each <!-- records: NAME --> needs its <!-- end -->")

        def block(found):
            return found[1] + fill(os.path.join(folder, found[2] + '.md'), results) + found[4]

        pages[path] = text, BLOCK.sub(block, text)
    return pages


def update(root, check):
    """Write the pages, or print what differs"""
    pages = written(root)
    differing = [path for path, (old, new) in pages.items() if old != new]
    for path in differing:
        old, new = pages[path]
        if check:
            lines = difflib.unified_diff(old.splitlines(), new.splitlines(), path, lineterm='')
            print('\n'.join(lines))
        else:
            write_text(path, new)
            print(f"wrote {path}")
    if check and differing:
        fail("the pages are not what the records say: python -m lab.results writes them", 1)


def main():
    if not add:
        return update(HERE, check)
    if not of or not re.fullmatch(r'[\w-]+', add):
        fail("a record takes a name and a folder: --add=release --of=out/release")
    names = add_record(os.path.join(HERE, 'records', add), of, machine, commit)
    print(f"records/{add} has {', '.join(names)} from {of}")


if __name__ == '__main__':
    try:
        main()
    except ValueError as e:
        fail(e)

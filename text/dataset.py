"""
Data sets of the puzzles in words, for models that read: JSON lines, and a data set card.

$ python -m text.dataset --task=all --total_tokens=10M
$ python -m text.dataset --task=logic,dyna --dry_run=true

writes train.jsonl, validation.jsonl, test.jsonl, metadata.json and README.md to data/all.
"""
from configurator import SEEDS, bounds, configure, fail, names_of

# --- settings ---
task = 'all'               # some of logic, dyna, filtro, inducto, or all
total_tokens = '10M'       # to write, at least; words, numbers and signs are counted
levels = '0.4,0.35,0.25'   # shares of easy, medium and hard questions
ratios = '0.9,0.05,0.05'   # of train, validation and test
seed = 1337
out_dir = 'data'           # files go to out_dir/task
dry_run = False            # say what would be written, and write nothing
push = ''                  # user/name: also upload it to the Hugging Face Hub
config = configure(globals())

# isort: split
import hashlib
import json
import math
import os
import re
import tempfile
from collections import Counter
from contextlib import ExitStack
from typing import NamedTuple

from tqdm import tqdm

from system import claim, write_json, write_text
from text.words import PUZZLES, draw_question, seeded

SETS = 'train', 'validation', 'test'
FILES = [name + '.jsonl' for name in SETS] + ['metadata.json', 'README.md']
TOKEN = re.compile(r'\w+|[^\w\s]')
UNITS = {'': 1, 'K': 10 ** 3, 'M': 10 ** 6, 'B': 10 ** 9}
CARD = """---
license: mit
task_categories: [text-generation]
configs:
- config_name: default
  data_files:
{files}
---
# {names}

Synthetic puzzles that tell architectures apart: {rows:,} questions of three levels of difficulty,
{tokens:,} tokens, seed {seed}. `input_text` is asked, `target` is the answer.

| split | questions |
| --- | --- |
{table}

No question is in two splits: a hash of its text says where it belongs. Made by Jericho:
`python -m text.dataset --task={task} --total_tokens={total_tokens} --levels={levels}
--ratios={ratios} --seed={seed}`
"""


# --- what is written ---

class Plan(NamedTuple):
    names: list    # of the puzzles
    tokens: int    # to write, at least
    levels: list   # shares of the three levels
    ratios: list   # shares of the three sets
    seed: int


def plan_of(config):
    """The settings -> a Plan; ValueError if one is wrong"""
    names = list(PUZZLES) if config['task'] == 'all' else names_of(config, 'task', PUZZLES)
    if not names:
        raise ValueError(f"task is all or some of {', '.join(PUZZLES)}")
    tokens = count_of(config['total_tokens'])
    levels = shares_of('levels', config['levels'])
    ratios = shares_of('ratios', config['ratios'])
    return Plan(names, tokens, levels, ratios, config['seed'])


def count_of(text):
    """'10M' -> 10,000,000"""
    found = re.fullmatch(r'(\d+(?:\.\d+)?)([KMB]?)', text.upper())
    count = round(float(found[1]) * UNITS[found[2]]) if found else 0
    if not count:
        raise ValueError(f"total_tokens is a number such as 500K, 10M or 1B, not {text!r}")
    return count


def shares_of(key, text):
    """'0.9,0.05,0.05' -> three numbers that add up to 1"""
    try:
        shares = [float(x) for x in text.split(',')]
    except ValueError:
        shares = []
    if len(shares) != 3 or min(shares) < 0 or not 0 < sum(shares) < math.inf:
        raise ValueError(f"{key} are three numbers, such as 0.5,0.3,0.2, not {text!r}")
    return [x / sum(shares) for x in shares]


def set_of(text, ratios):
    """Which set a question belongs to: a hash of its text says so, whatever the seed"""
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], 'big') / 2 ** 64
    if place < ratios[0]:
        return 'train'
    return 'validation' if place < ratios[0] + ratios[1] else 'test'


def rows_of(plan):
    """Rows of a data set and how many tokens each has, until there are as many as planned"""
    rng = seeded(plan.seed, *plan.names)
    numbers = Counter()
    tokens = 0
    while tokens < plan.tokens:
        task = rng.choice(plan.names)
        [level] = rng.choices((1, 2, 3), plan.levels)
        question = draw_question(task, level, rng)
        which = set_of(question.text, plan.ratios)
        kind = f'{task}_{level}_{which}'
        row = {
            'input_text': question.text,
            'target': question.target,
            'task': task,
            'difficulty': level,
            'split': which,
            'sample_id': f'{kind}_{numbers[kind]}',
            'metadata': json.dumps(question.metadata),
        }
        numbers[kind] += 1
        n = len(TOKEN.findall(question.text)) + len(TOKEN.findall(question.target))
        tokens += n
        yield row, n


# --- writing ---

def write_rows(folder, plan):
    """The JSON lines of a data set -> how many questions of each (set, task, level), and tokens"""
    counts = Counter()
    tokens = 0
    with ExitStack() as stack:
        files = {}
        for name in SETS:
            path = os.path.join(folder, name + '.jsonl')
            files[name] = stack.enter_context(open(path, 'w', encoding='utf-8'))
        bar = tqdm(total=plan.tokens, unit='token', unit_scale=True, disable=None)
        stack.enter_context(bar)
        for row, n in rows_of(plan):
            files[row['split']].write(json.dumps(row) + '\n')
            counts[row['split'], row['task'], row['difficulty']] += 1
            tokens += n
            bar.update(n)
    return counts, tokens


def card_of(config, plan, counts, tokens):
    """The text of a data set card, which names the sets that there are"""
    in_set = Counter()
    for (name, _, _), n in counts.items():
        in_set[name] += n
    there = [name for name in SETS if in_set[name]]
    return CARD.format(
        **{key: config[key] for key in ('task', 'total_tokens', 'levels', 'ratios', 'seed')},
        names=', '.join(plan.names),
        rows=counts.total(),
        tokens=tokens,
        files='\n'.join(f'  - {{split: {name}, path: {name}.jsonl}}' for name in there),
        table='\n'.join(f'| {name} | {in_set[name]:,} |' for name in there),
    )


def upload(folder, name):
    """Upload a data set in words to the Hugging Face Hub, as user/name"""
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise ValueError("push needs huggingface_hub: pip install huggingface_hub") from None
    try:
        hub = HfApi()
        hub.create_repo(name, repo_type='dataset', exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder, repo_type='dataset',
                          allow_patterns=FILES)
    except Exception as e:  # of many kinds: no login, no network, no such user
        why = str(e).strip().splitlines() or [type(e).__name__]
        raise ValueError(f"the data set is in {folder}, but could not be uploaded: {why[0]} "
                         "(hf auth login logs in)") from None
    print(f"uploaded to https://huggingface.co/datasets/{name}")


def main():
    """Write all files or none; ValueError if a setting is wrong, or if the folder has somebody
    else's files"""
    plan = plan_of(config)
    folder = os.path.join(out_dir, task)
    shares = [f'{ratio:.0%} {name}' for ratio, name in zip(plan.ratios, SETS, strict=True)]
    print(f"{plan.tokens:,} tokens of {', '.join(plan.names)} to {folder}: {', '.join(shares)}")
    if dry_run:
        for row, _ in rows_of(plan._replace(tokens=500)):
            print(f"{row['task']}, level {row['difficulty']}: {row['input_text']} {row['target']}")
        return

    claim(folder)
    with tempfile.TemporaryDirectory(prefix='.unfinished-', dir=folder) as unfinished:
        counts, tokens = write_rows(unfinished, plan)
        questions = {'_'.join(map(str, kind)): counts[kind] for kind in sorted(counts)}
        about = {
            'tasks': plan.names,
            'seed': plan.seed,
            'tokens': tokens,
            'levels': plan.levels,
            'ratios': plan.ratios,
            'questions': questions,
        }
        write_json(os.path.join(unfinished, 'metadata.json'), about)
        write_text(os.path.join(unfinished, 'README.md'), card_of(config, plan, counts, tokens))
        for name in FILES:
            os.replace(os.path.join(unfinished, name), os.path.join(folder, name))
    print(f"wrote {counts.total():,} questions, {tokens:,} tokens, to {folder}")
    if push:
        upload(folder, push)


if __name__ == '__main__':
    bounds(config, seed=SEEDS)
    try:
        main()
    except ValueError as e:
        fail(e)
    except OSError as e:
        fail(f"cannot write to {e.filename or out_dir}: {e.strerror}")

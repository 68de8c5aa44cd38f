"""
Data sets on disk: questions and answers as WAV files, and the puzzles in words as JSON lines.
"""
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections import Counter
from contextlib import ExitStack

from tqdm import tqdm

from configurator import names_of
from files import SAMPLE_RATE, write_wav
from prepare import split_batches
from results import claim, clear, write_whole
from tasks import TASKS, decode, split_names
from words import PUZZLES, draw_of, question

PARTS = 'train', 'validation', 'test'
FILES = [part + '.jsonl' for part in PARTS] + ['metadata.json', 'README.md']
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
`python prepare.py --format=text --task={task} --total_tokens={total} --levels={levels}
--ratios={ratios} --seed={seed}`
"""


def write_sounds(task, split, num_samples, out_dir, seed):
    """WAV files of num_samples questions and answers, and metadata.jsonl, in out_dir/task/split.
    ValueError if there is no such task or split."""
    if task not in TASKS:
        raise ValueError(f"there is no task {task!r}; the tasks are {', '.join(TASKS)}")
    names = split_names(task, split)
    if not names:
        raise ValueError(f"{task} has no split {split!r}; it has {', '.join(TASKS[task].splits)}")
    folder = os.path.join(out_dir, task, split)
    claim(folder)
    clear(folder, r'\d{6}_(question|answer)\.wav|metadata\.jsonl')
    rows = []
    for i, name in enumerate(names):
        share = len(range(i, num_samples, len(names)))
        for b in split_batches(task, name, share, seed):
            for j, n in enumerate(b.lengths.tolist()):
                question = f'{len(rows):06d}_question.wav'
                answer = f'{len(rows):06d}_answer.wav'
                for file, sound in ((question, b.question), (answer, b.answer)):
                    write_wav(os.path.join(folder, file), sound[j, :n])
                rows.append({
                    'question_file_name': question,
                    'answer_file_name': answer,
                    'task': task,
                    'split': name,
                    'question_symbols': decode(b.asked[j]),
                    'answer_symbols': decode(b.wanted[j]),
                    'duration': n / SAMPLE_RATE,
                    'seed': seed,
                })
    text = ''.join(json.dumps(row) + '\n' for row in rows).encode()
    write_whole(os.path.join(folder, 'metadata.jsonl'), lambda f: f.write(text))
    print(f"wrote {len(rows)} questions and answers and metadata.jsonl to {folder}")


# --- text ---

def count_of(text):
    """'10M' -> 10,000,000"""
    found = re.fullmatch(r'(\d+(?:\.\d+)?)([KMB]?)', text.upper())
    total = round(float(found[1]) * UNITS[found[2]]) if found else 0
    if not total:
        raise ValueError(f"total_tokens is a number such as 500K, 10M or 1B, not {text!r}")
    return total


def shares_of(key, text):
    """'0.9,0.05,0.05' -> three numbers that add up to 1"""
    try:
        shares = [float(x) for x in text.split(',')]
    except ValueError:
        shares = []
    if len(shares) != 3 or min(shares) < 0 or not 0 < sum(shares) < math.inf:
        raise ValueError(f"{key} are three numbers, such as 0.5,0.3,0.2, not {text!r}")
    return [x / sum(shares) for x in shares]


def part_of(text, ratios):
    """Which part a question belongs to: a hash of its text says so, whatever the seed"""
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], 'big') / 2 ** 64
    if place < ratios[0]:
        return 'train'
    return 'validation' if place < ratios[0] + ratios[1] else 'test'


def rows_of(names, total, weights, ratios, seed):
    """Rows of a data set and how many tokens each has, until there are `total` tokens"""
    draw, tokens, numbers = draw_of(seed, *names), 0, Counter()
    while tokens < total:
        task, [level] = draw.choice(names), draw.choices((1, 2, 3), weights)
        text, target, more = question(task, level, draw)
        part = part_of(text, ratios)
        kind = f'{task}_{level}_{part}'
        row = {'input_text': text, 'target': target, 'task': task, 'difficulty': level,
               'split': part, 'sample_id': f'{kind}_{numbers[kind]}', 'metadata': json.dumps(more)}
        numbers[kind] += 1
        n = len(TOKEN.findall(text)) + len(TOKEN.findall(target))
        tokens += n
        yield row, n


def write_text(config):
    """Puzzles in words, by the settings of prepare.py: train.jsonl, validation.jsonl, test.jsonl,
    metadata.json and a data set card, in out_dir/task, all of them or none. ValueError if a setting
    is wrong."""
    task, seed = config['task'], config['seed']
    names = list(PUZZLES) if task == 'all' else names_of(config, 'task', PUZZLES)
    if not names:
        raise ValueError(f"task is all or some of {', '.join(PUZZLES)}")
    total = count_of(config['total_tokens'])
    weights = shares_of('levels', config['levels'])
    ratios = shares_of('ratios', config['ratios'])
    folder = os.path.join(config['out_dir'], task)
    said = ', '.join(f'{share:.0%} {part}' for share, part in zip(ratios, PARTS, strict=True))
    print(f"{total:,} tokens of {', '.join(names)} to {folder}: {said}")
    if config['dry_run']:
        for row, _ in rows_of(names, 500, weights, ratios, seed):
            print(f"{row['task']}, level {row['difficulty']}: {row['input_text']} {row['target']}")
        return

    claim(folder)
    unfinished = tempfile.mkdtemp(prefix='.unfinished-', dir=folder)
    try:
        counts, tokens = write_rows(unfinished, names, total, weights, ratios, seed)
        by_part = Counter()
        for (part, _, _), n in counts.items():
            by_part[part] += n
        about = {'tasks': names, 'seed': seed, 'tokens': tokens, 'levels': weights,
                 'ratios': ratios,
                 'questions': {'_'.join(map(str, key)): counts[key] for key in sorted(counts)}}
        parts = [part for part in PARTS if by_part[part]]
        card = CARD.format(
            names=', '.join(names), rows=by_part.total(), tokens=tokens, seed=seed, task=task,
            total=config['total_tokens'], levels=config['levels'], ratios=config['ratios'],
            files='\n'.join(f'  - {{split: {part}, path: {part}.jsonl}}' for part in parts),
            table='\n'.join(f'| {part} | {by_part[part]:,} |' for part in parts))
        for name, text in (('metadata.json', json.dumps(about, indent=1)), ('README.md', card)):
            with open(os.path.join(unfinished, name), 'w', encoding='utf-8') as f:
                f.write(text)
        for name in FILES:
            os.replace(os.path.join(unfinished, name), os.path.join(folder, name))
    finally:
        shutil.rmtree(unfinished)
    print(f"wrote {by_part.total():,} questions, {tokens:,} tokens, to {folder}")
    if config['push']:
        upload(folder, config['push'])


def write_rows(folder, names, total, weights, ratios, seed):
    """The JSON lines of a data set -> how many questions of each (part, task, level), and tokens"""
    counts, tokens = Counter(), 0
    with ExitStack() as stack:
        files = {part: stack.enter_context(open(os.path.join(folder, part + '.jsonl'), 'w',
                                                encoding='utf-8'))
                 for part in PARTS}
        bar = stack.enter_context(tqdm(total=total, unit='token', unit_scale=True, disable=None))
        for row, n in rows_of(names, total, weights, ratios, seed):
            files[row['split']].write(json.dumps(row) + '\n')
            counts[row['split'], row['task'], row['difficulty']] += 1
            tokens += n
            bar.update(n)
    return counts, tokens


def upload(folder, name):
    """Upload a data set in words to the Hugging Face Hub, as user/name"""
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise ValueError("push needs huggingface_hub: pip install huggingface_hub") from None
    try:
        HfApi().create_repo(name, repo_type='dataset', exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=folder, repo_type='dataset',
                              allow_patterns=FILES)
    except Exception as e:  # of many kinds: no login, no network, no such user
        why = str(e).strip().splitlines() or [type(e).__name__]
        raise ValueError(f"the data set is in {folder}, but could not be uploaded: {why[0]} "
                         "(hf auth login logs in)") from None
    print(f"uploaded to https://huggingface.co/datasets/{name}")

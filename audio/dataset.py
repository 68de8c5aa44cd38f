"""
Data sets of sound: questions and answers as WAV files. prepare.py writes them.
"""
import json
import os

from audio.files import SAMPLE_RATE, write_wav
from prepare import split_batches
from system import claim, clear, write_text
from tasks import TASKS, decode, split_names


def write_sounds(task, split, num_samples, out_dir, seed):
    """WAV files of num_samples questions and answers, and metadata.jsonl, in out_dir/task/split.
    ValueError if there is no such task or split, or if the folder has somebody else's files."""
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
        # A family of splits, such as compose, shares the examples out among its members.
        n = len(range(i, num_samples, len(names)))
        for batch in split_batches(task, name, n, seed):
            for j in range(len(batch.lengths)):
                row = write_example(folder, len(rows), batch, j)
                rows.append({'task': task, 'split': name, 'seed': seed, **row})
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    write_text(os.path.join(folder, 'metadata.jsonl'), text)
    print(f"wrote {len(rows)} questions and answers and metadata.jsonl to {folder}")


def write_example(folder, number, batch, j):
    """The two WAV files of one example of a batch -> its columns of metadata.jsonl"""
    n = int(batch.lengths[j])
    row = {}
    for kind, wave in (('question', batch.question[j]), ('answer', batch.answer[j])):
        row[f'{kind}_file_name'] = file = f'{number:06d}_{kind}.wav'
        write_wav(os.path.join(folder, file), wave[:n])
    row['question_symbols'] = decode(batch.asked[j])
    row['answer_symbols'] = decode(batch.wanted[j])
    row['duration'] = n / SAMPLE_RATE
    return row

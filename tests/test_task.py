"""
A task that nobody has heard of goes through every script, with no other edit.

$ python -m pytest tests/test_task.py
"""
import json

import pytest
import torch

from audio.files import read_wav
from score import transcribe
from tasks import TASKS, Task, encode
from tests.helpers import TRAIN, is_png, output, refusal, rows_of, run_here

LETTERS = 'ABCDEFGHIJ'
A = encode('A')[0]


def draw(n, generator, device, high=6):
    """Two letters to `high`; the answer plays the first one twice and leaves out the second."""
    q = A + torch.randint(5, (n, high), generator=generator, device=device)
    length = torch.randint(2, high + 1, (n, 1), generator=generator, device=device)
    q = torch.where(torch.arange(high, device=device) < length, q, -1)
    return q, torch.ones(n, dtype=torch.bool, device=device)


def answer(q):
    a = q.clone()
    a[:, 1] = q[:, 0]
    return a


def solve(text):
    if len(text) < 2 or set(text) - set(LETTERS):
        raise ValueError
    return text[0] + text[0] + text[2:]


SPLITS = {'train': {}, 'val': {}, 'val_ood': {'high': 7}, 'iid': {}, 'ood_length_8': {'high': 8}}
echo2 = Task('echo2', LETTERS, 'AB', draw, SPLITS, answer, solve)


@pytest.fixture(scope='module', autouse=True)
def registry():
    """For as long as this file is tested, there is one more task."""
    TASKS['echo2'] = echo2
    yield
    del TASKS['echo2']


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """A config file of the task, for which README.md has three lines"""
    path = tmp_path_factory.mktemp('config') / 'echo2.py'
    path.write_text("tasks = 'echo2'\nd_model = 32\nd_state = 16\nhead_dim = 16\nn_head = 2\n")
    return path


@pytest.fixture(scope='module')
def folder(tmp_path_factory, config):
    """Where a tiny model of it has been trained"""
    out = tmp_path_factory.mktemp('out') / 'echo2'
    code, _ = run_here('train.py', config, *TRAIN, '--pauses=2', '--hide=0.5',
                       '--curriculum=0.5', '--test_samples=0', f'--out_dir={out}')
    assert code == 0
    return out


def heard_in(path):
    return transcribe(read_wav(str(path))[None])[0]


def test_prepare(tmp_path, capsys):
    output(capsys, 'prepare.py', '--task=echo2', '--split=all', '--num_samples=8',
           f'--out_dir={tmp_path}')
    rows = rows_of(tmp_path / 'echo2' / 'all' / 'metadata.jsonl')
    assert [row['split'] for row in rows] == ['iid'] * 4 + ['ood_length_8'] * 4
    for row in rows:
        assert row['answer_symbols'] == solve(row['question_symbols'])
        answer = tmp_path / 'echo2' / 'all' / row['answer_file_name']
        assert heard_in(answer) == row['answer_symbols']


def test_train(folder):
    rows = rows_of(folder / 'log.jsonl')
    assert [row['iter'] for row in rows] == [2, 3, 4, 6, 6]
    assert [list(row['val']) for row in rows if 'val' in row] == [['echo2'], ['echo2']]
    assert 'so_far' not in rows[0]  # nobody said what it comes to so far


def test_sample(folder, tmp_path, capsys):
    ask = [f'--out_dir={folder}', f'--sample_dir={tmp_path}']
    assert 'asked CAB, wanted CCB, heard' in output(capsys, 'sample.py', *ask, '--start=CAB')
    assert "'A%' is not a question of echo2" in refusal(capsys, 'sample.py', *ask, '--start=A%')
    assert 'wrote 3 questions' in output(capsys, 'sample.py', *ask, '--num_samples=3')
    question = tmp_path / '000_question.wav'
    recorded = output(capsys, 'sample.py', *ask, f'--wav={question}')
    asked = heard_in(question)
    assert f'the scorer heard {asked} asked, and' in recorded


def test_score(folder, capsys):
    text = output(capsys, 'score.py', f'--out_dir={folder}', '--num_samples=5', '--errors=True')
    assert 'echo2_iid_em: ' in text and 'echo2_ood_length_8_em: ' in text
    scores = json.loads((folder / 'scores.json').read_text())['scores']
    assert set(scores['echo2']) == {'iid', 'ood_length_8'}
    rows = rows_of(folder / 'errors.jsonl')
    assert rows
    for row in rows:
        assert (row['task'], row['line']) == ('echo2', 1)
        assert row['line_wanted'] == solve(row['line_asked'])


def test_figures(folder, tmp_path, capsys):
    picture = tmp_path / 'table.png'
    text = output(capsys, 'figures.py', folder, f'--out={picture}')
    assert '| echo2 | seeds | questions | iid | ood_length_8 | seconds |' in text
    assert is_png(picture)
    picture = tmp_path / 'pointer.png'
    output(capsys, 'inside.py', 'pointer', folder, f'--out={picture}')
    assert is_png(picture)


def test_bench(config, tmp_path, capsys):
    path = tmp_path / 'bench.json'
    output(capsys, 'bench.py', '--parts=step', f"--configs={config.with_suffix('')}",
           '--device=cpu', '--repeats=1', '--batch_size=2', f'--out={path}')
    rows = json.loads(path.read_text())
    assert rows[-1]['what'].endswith('echo2, d 32, batch 2: Mini-JMamba')
    assert rows[-1]['value'] > 0


def test_one_model_of_it_and_the_others(tmp_path, capsys):
    """Typed letters could be of three of these tasks, and are asked of the one that is named."""
    folder = tmp_path / 'all'
    names = 'echo2,mirror,reverse,bracket'
    output(capsys, 'train.py', f'--tasks={names}', '--aloud=bracket', *TRAIN, '--max_iters=3',
           '--eval_samples=1', '--test_samples=0', f'--out_dir={folder}')
    ask = [f'--out_dir={folder}', '--start=CAB']
    said = refusal(capsys, 'sample.py', *ask)
    assert 'could belong to echo2 or mirror or reverse; name its task' in said
    for task, wanted in (('echo2', 'CCB'), ('mirror', 'CAB'), ('reverse', 'BAC')):
        text = output(capsys, 'sample.py', *ask, f'--task={task}')
        assert f'asked CAB, wanted {wanted}, heard' in text
    text = output(capsys, 'score.py', f'--out_dir={folder}', '--num_samples=2', '--split=iid')
    for task in names.split(','):
        assert f'{task}_iid_em: ' in text

"""
Training: it goes on where it stopped, survives kills, full disks and bad numbers, and is the same
in two processes.

$ python -m pytest tests/test_train.py          # a minute on one core
$ python -m pytest tests/test_train.py --long   # and twenty kills
"""
import math
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
import traceback

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import exam
import fast
import lessons
import prepare
from checkpoint import load_checkpoint
from tasks import TASKS, so_far
from tests.helpers import (
    ROOT,
    TRAIN,
    files_in,
    is_one_line,
    path_of,
    refusal,
    rows_of,
    run,
    run_here,
    texts_of,
)
from transcribe import transcribe

UNTESTED = [*TRAIN, '--test_samples=0']
ALL_TASKS = ['--tasks=mirror,bracket,mod', '--aloud=mod,bracket']
FEW = ['--think=1', '--batch_size=2', '--eval_samples=1', '--log_interval=1']


def train_here(*flags):
    """train.py in this process -> its exit code"""
    return run_here('train.py', *UNTESTED, *flags)[0]


def checkpoint_in(folder, name='ckpt.pt'):
    return torch.load(folder / name, weights_only=True)


def log_of(folder, key=None):
    """The rows of a run's log, or what those that have it have under a key"""
    rows = rows_of(folder / 'log.jsonl')
    if key is None:
        return [{**row, 'seconds': 0} for row in rows]
    return [row[key] for row in rows if key in row]


def same_weights(a, b):
    return all(torch.equal(a['model'][key], b['model'][key]) for key in a['model'])


def all_finite(folder):
    return all(w.isfinite().all() for w in checkpoint_in(folder)['model'].values())


def of_updates(monkeypatch, n):
    """Lots are drawn for so many updates"""
    monkeypatch.setattr(fast, 'LOT', n)
    monkeypatch.setattr(fast.lots, 'LOT', n)


@pytest.fixture
def change_batches(monkeypatch):
    """Give it change(n, batch) -> batch, and it is done to the n-th training batch from now on"""
    def change_with(change):
        made = []

        def example(batch, *rest):
            made.append(len(made))
            return Example(change(len(made), batch), *rest)

        monkeypatch.setattr(lessons, 'Example', example)

    Example = lessons.Example
    return change_with


@pytest.fixture
def trained_on(monkeypatch):
    """A list that gets the Examples of each forward, in their order"""
    found, Example = [], lessons.Example

    def example(*parts):
        found.append(Example(*parts))
        return found[-1]

    monkeypatch.setattr(lessons, 'Example', example)
    return found


@pytest.fixture
def drawn_by(monkeypatch):
    """{split: list} that gets what is Drawn of it"""
    found, draw_examples = {}, prepare.draw_examples

    def draw(task, split, *args, **more):
        drawn = draw_examples(task, split, *args, **more)
        found.setdefault(split, []).append(drawn)
        return drawn

    monkeypatch.setattr(prepare, 'draw_examples', draw)
    return found


# --- a run goes on where it stopped ---

def end_at(number):
    """A change of batches: a SIGTERM, as from outside, while a batch is made"""
    def change(n, batch):
        if n == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch

    return change


TWO_TASKS = ['--tasks=mod,bracket', '--aloud=mod,bracket']


TWO_SOUNDS = ['--tasks=mirror,mod', '--aloud=mod', '--sound=real', '--hide=0.5', '--pauses=2',
              '--mix=1,2', '--eval_interval=6', '--gradient_accumulation_steps=2']
RISING = [*TWO_TASKS, '--muon=True', '--curriculum=0.75', '--halting=True',
          '--eval_interval=6']


@pytest.mark.parametrize('flags, n_forwards, lot, stops, iters', [
    (TWO_SOUNDS, 2, 2, 4, 6),
    (RISING, 1, 4, 5, 8),                    # in the middle of lots, of unlike levels
    ([*RISING, '--mix=1,0'], 1, 3, 6, 9),    # between two, and before validation
])
def test_training_goes_on_where_it_stopped_bit_for_bit(
        flags, n_forwards, lot, stops, iters, tmp_path, change_batches, monkeypatch):
    of_updates(monkeypatch, lot)
    flags = [*FEW, '--batch_size=4', '--think=2', f'--max_iters={iters}', *flags]
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    assert train_here(*flags, f'--out_dir={whole}') == 0
    change_batches(end_at(n_forwards * stops))
    assert train_here(*flags, f'--out_dir={parts}') == 143
    assert checkpoint_in(parts)['iter_num'] == stops
    assert train_here(*flags, f'--out_dir={parts}', '--init_from=resume') == 0
    a, b = checkpoint_in(whole), checkpoint_in(parts)
    assert a['iter_num'] == b['iter_num'] == iters
    for key in ('wrong', 'best', 'updates', 'levels'):
        assert a[key] == b[key]
    assert log_of(whole) == log_of(parts)
    assert same_weights(a, b)


def test_with_replay_it_goes_on_with_conversations_that_begin_anew(tmp_path, change_batches):
    flags = [*TWO_TASKS, *FEW, '--batch_size=4', '--think=2', '--replay=0.5', '--hide=0.5']
    change_batches(end_at(4))
    assert train_here(*flags, f'--out_dir={tmp_path}') == 143
    assert train_here(*flags, f'--out_dir={tmp_path}', '--init_from=resume') == 0
    assert log_of(tmp_path, 'iter')[-1] == 6
    weights = checkpoint_in(tmp_path)['model']
    assert all(torch.isfinite(x).all() for x in weights.values())


def test_a_run_that_resumes_may_be_of_another_difficulty(tmp_path, drawn_by, monkeypatch):
    of_updates(monkeypatch, 3)
    flags = [*FEW, '--batch_size=20', f'--out_dir={tmp_path}', '--max_iters=6']
    assert train_here(*flags, '--max_iters=3', '--difficulty=0') == 0
    assert train_here(*flags, '--init_from=resume') == 0
    lengths = [set((drawn.asked >= 0).sum(1).tolist()) for drawn in drawn_by['train']]
    assert lengths == [{3}, set(range(3, 11))]


def test_a_new_process_goes_on_as_well(tmp_path):
    flags = [path_of('config/mirror.py'), *UNTESTED, f'--out_dir={tmp_path}', '--eval_samples=1']
    assert run_here('train.py', *flags, '--max_iters=3')[0] == 0
    said = run('train.py', *flags, '--init_from=resume')
    assert 'trained 6 iterations' in said
    assert log_of(tmp_path, 'iter') == [2, 3, 4, 6, 6]


def test_the_optimizer_takes_the_settings_of_the_run_that_resumes(tmp_path):
    assert train_here(f'--out_dir={tmp_path}', '--max_iters=3') == 0
    assert train_here(f'--out_dir={tmp_path}', '--init_from=resume', '--weight_decay=0.25') == 0
    groups = checkpoint_in(tmp_path)['optimizer']['param_groups']
    assert [group['weight_decay'] for group in groups] == [0.25, 0]


@pytest.mark.parametrize('flag, says', [
    ('--d_model=64', 'was trained with d_model=32; to go on, leave it so'),
    ('--tasks=mod', 'was trained with tasks=mirror; to go on, leave it so'),
    ('--seed=3', 'was trained with seed=1337; to go on, leave it so'),
    ('--muon=True', 'was trained with muon=False; to go on, leave it so'),
])
def test_a_run_resumes_as_it_was_begun(flag, says, trained, capsys):
    before = (trained / 'ckpt.pt').read_bytes()
    flags = [*UNTESTED, f'--out_dir={trained}', '--init_from=resume', flag]
    assert says in refusal(capsys, 'train.py', *flags)
    assert (trained / 'ckpt.pt').read_bytes() == before


def test_weights_go_on_with_another_task(trained, tmp_path, capsys):
    before = (trained / 'ckpt.pt').read_bytes()
    flags = [f'--init_from={trained}', '--tasks=reverse', '--learning_rate=0', '--min_lr=0']
    assert train_here(*flags, f'--out_dir={tmp_path}') == 0
    assert same_weights(load_checkpoint(str(trained))[1], checkpoint_in(tmp_path))
    assert checkpoint_in(tmp_path)['config']['tasks'] == 'reverse'
    for more, says in (
        ([f'--out_dir={trained}'], 'would be overwritten'),
        ([f'--out_dir={tmp_path}', '--d_model=64'], 'was trained with d_model=32'),
        ([f'--out_dir={tmp_path}', f'--init_from={tmp_path / "no"}'], 'there is no'),
    ):
        assert says in refusal(capsys, 'train.py', *UNTESTED, *flags, *more)
    assert (trained / 'ckpt.pt').read_bytes() == before


def test_only_the_head_learns(tmp_path, capsys):
    folder, head = tmp_path / 'a', tmp_path / 'b'
    flags = ['--tasks=mod', '--aloud=mod', '--think=2']
    assert train_here(*flags, f'--out_dir={folder}') == 0
    flags += [f'--init_from={folder}', '--halting=True', f'--out_dir={head}']
    assert train_here(*flags, '--learns=halt') == 0
    was, now = checkpoint_in(folder)['model'], checkpoint_in(head)['model']
    assert now.keys() - was.keys() == {'halt.weight', 'halt.bias'}
    assert all(torch.equal(was[key], now[key]) for key in was)
    assert now['halt.bias'].abs() > 0
    before = files_in(head)
    said = refusal(capsys, 'train.py', *UNTESTED, *flags, '--learns=hald', '--overwrite=true')
    assert 'learns names no part of the model: hald' in said
    assert files_in(head) == before


def test_a_run_that_is_done_stays_as_it_is(trained):
    before = (trained / 'ckpt.pt').read_bytes()
    assert train_here(f'--out_dir={trained}', '--init_from=resume') == 0
    assert (trained / 'ckpt.pt').read_bytes() == before


def test_weights_alone_cannot_be_resumed(tmp_path, trained, capsys):
    checkpoint = checkpoint_in(trained)
    del checkpoint['optimizer']
    assert train_here(f'--out_dir={tmp_path}', '--max_iters=1') == 0
    torch.save(checkpoint, tmp_path / 'ckpt.pt')
    flags = [*UNTESTED, f'--out_dir={tmp_path}', '--init_from=resume']
    assert 'it holds weights only' in refusal(capsys, 'train.py', *flags)


def test_a_run_does_not_pass_off_an_earlier_one(tmp_path, capsys):
    flags = [*UNTESTED, f'--out_dir={tmp_path}', '--max_iters=1', '--eval_samples=1']
    assert run_here('train.py', *flags)[0] == 0
    (tmp_path / 'scores.json').write_text('{}')
    (tmp_path / 'mine.txt').write_text("a person's own")
    before = files_in(tmp_path)
    said = refusal(capsys, 'train.py', *flags)
    assert '--init_from=resume' in said and '--overwrite=true' in said
    assert files_in(tmp_path) == before
    # A run that blows up says so, and saves nothing of it.
    blows_up = '--overwrite=true', '--learning_rate=1e30', '--warmup_iters=0', '--grad_clip=0'
    assert 'learning_rate' in refusal(capsys, 'train.py', *flags, '--max_iters=6', *blows_up,
                                      code=1)
    assert files_in(tmp_path) == ['log.jsonl', 'mine.txt']


# --- before anything is done ---

def refused(capsys, tmp_path, *flags):
    """Training is refused in a sentence, and no folder is made"""
    said = refusal(capsys, 'train.py', *UNTESTED, *flags, f'--out_dir={tmp_path / "new"}')
    assert not (tmp_path / 'new').exists()
    return said


@pytest.mark.parametrize('part', ['layer', 'cross', 'self_attention', 'front'])
def test_a_part_that_is_not_there_is_refused(part, tmp_path, capsys):
    assert "there is no 'nothing:Here'" in refused(capsys, tmp_path, f'--{part}=nothing:Here')


@pytest.mark.parametrize('wrong, says', [
    ({'solve': lambda text: text[::-1]}, 'solve'),
    ({'answer': lambda q: q.flip(1)}, 'answer'),
    ({'splits': {k: v for k, v in TASKS['mirror'].splits.items() if k != 'val_ood'}}, 'val_ood'),
])
def test_a_task_that_contradicts_itself_is_refused(wrong, says, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(TASKS, 'mirror', TASKS['mirror']._replace(**wrong))
    said = refused(capsys, tmp_path, '--tasks=mirror')
    assert 'task mirror: ' in said and says in said


# --- what is trained on ---

def rows_by_phase(drawn):
    """The rows of a Drawn or a Batch: no two have the same first phase"""
    symbols = zip(texts_of(drawn.asked), texts_of(drawn.wanted), strict=True)
    return dict(zip(drawn.rhythm.phase[:, 0].tolist(), symbols, strict=True))


@pytest.mark.parametrize('flags', [[], ['--sound=real', '--gradient_accumulation_steps=2']])
def test_each_example_that_is_drawn_is_trained_on_once_in_a_window_of_its_length(
        flags, tmp_path, drawn_by, trained_on, monkeypatch):
    of_updates(monkeypatch, 4)
    flags = ['--tasks=mod', '--aloud=mod', '--hide=0.5', '--pauses=6', '--max_iters=8', '--think=1',
             *flags]
    assert train_here(*flags, f'--out_dir={tmp_path}') == 0
    n_forwards = len(trained_on) // 8
    assert [len(drawn.asked) for drawn in drawn_by['train']] == 2 * [4 * 4 * n_forwards]
    sizes, longest = set(), []
    for k, drawn in enumerate(drawn_by['train']):
        of_lot = trained_on[4 * n_forwards * k:][:4 * n_forwards]
        seen = {}
        for example in of_lot:
            batch = example.batch
            seen |= rows_by_phase(batch)
            sizes.add(batch.question.shape[1])
            longest.append(int(batch.lengths.max()))
            assert batch.question.shape == batch.answer.shape
            assert longest[-1] <= batch.question.shape[1]
            # Neighbours go on with the same divisors.
            divisors = [text.split('%')[1:] for text in texts_of(batch.asked)]
            assert divisors[::2] == divisors[1::2]
            hidden = ~example.hiding.visible.all(1)
            neighbour = torch.arange(4) ^ 1
            assert torch.equal(example.hiding.neighbour[hidden], neighbour[hidden])
        assert seen == rows_by_phase(drawn)
    assert len(sizes) > 1 and all(size % prepare.BLOCK == 0 for size in sizes)
    assert sizes <= {fast.lots.window(samples) for samples in longest}
    assert longest != sorted(longest)  # the shortest do not come first


def test_labels_and_the_last_line_go_with_their_questions(tmp_path, trained_on):
    flags = [*FEW, '--batch_size=8', '--halting=True', '--replay=0.5']
    for task, is_aloud, teaches in (
        ('bracket', True, True), ('mod', False, True), ('mod', True, False),
        ('mirror', False, False),
    ):
        trained_on.clear()
        aloud = [f'--aloud={task}'] if is_aloud else []
        folder = tmp_path / f'{task}_{is_aloud}'
        assert train_here(*flags, f'--tasks={task}', *aloud, f'--out_dir={folder}') == 0
        for example in trained_on:
            batch = example.batch
            assert torch.equal(example.is_last, lessons.last_line(task, batch, is_aloud))
            assert (example.so_far is not None) == teaches
            if teaches:
                assert torch.equal(example.so_far, so_far(task, batch.asked))
            assert len(example.talk) == (4 if is_aloud else 0)


def test_what_is_easy_is_trained_and_validated_alone(tmp_path, drawn_by):
    assert train_here('--tasks=mod', '--difficulty=0.4', '--batch_size=10', '--eval_samples=1',
                      '--max_iters=1', f'--out_dir={tmp_path}') == 0
    for split in ('train', 'val'):
        texts = [text for drawn in drawn_by[split] for text in texts_of(drawn.asked)]
        assert len(texts) >= 50
        divisors = [d for text in texts for d in text.split('%')[1:]]
        assert max(len(d.lstrip('0')) for d in divisors) == 1


def test_fixed_shares_of_tasks_and_a_difficulty_that_rises_with_time(tmp_path, monkeypatch):
    of_updates(monkeypatch, 1)
    flags = [*ALL_TASKS, *FEW, '--max_iters=24', '--eval_interval=12', '--mix=1,0,3',
             '--curriculum=0.5']
    assert train_here(*flags, f'--out_dir={tmp_path}') == 0
    turns = log_of(tmp_path, 'task')
    assert 0 < turns.count('mirror') < turns.count('mod')
    assert turns.count('bracket') == 0
    assert log_of(tmp_path, 'odds') == [{'mirror': 1, 'bracket': 0, 'mod': 3}] * 2
    assert log_of(tmp_path, 'level') == pytest.approx([2 * 11 / 24, 1], abs=0.1)


def test_a_lot_is_as_difficult_as_when_it_is_drawn(tmp_path, drawn_by, monkeypatch):
    of_updates(monkeypatch, 4)
    flags = [*FEW, '--max_iters=12', '--eval_interval=12', '--curriculum=1', '--difficulty=0.75',
             '--batch_size=40']
    assert train_here(*flags, f'--out_dir={tmp_path}') == 0
    longest = [int((drawn.asked >= 0).sum(1).max()) for drawn in drawn_by['train']]
    assert longest == [3, 4, 6]  # at levels 0, 0.25 and 0.5, of 3 to 10 letters


def test_tasks_are_drawn_by_what_is_wrong_and_none_is_forgotten(tmp_path, monkeypatch):
    right = {'mirror': 1.0, 'bracket': 0.5, 'mod': 0.0}

    def evaluate(model, task, *args, **more):
        return dict.fromkeys(('exact_match', 'token_accuracy', 'edit_distance'), right[task])

    monkeypatch.setattr(exam, 'evaluate', evaluate)
    flags = [*ALL_TASKS, *FEW, '--max_iters=48', '--eval_interval=16']
    assert train_here(*flags, f'--out_dir={tmp_path}') == 0
    first, then = {'mirror': 1, 'bracket': 1, 'mod': 1}, {'mirror': 0.1, 'bracket': 0.5, 'mod': 1}
    assert log_of(tmp_path, 'odds') == [first, then, then]
    turns = log_of(tmp_path, 'task')[16:]
    assert 0 < turns.count('mirror') < turns.count('bracket') < turns.count('mod')


def test_the_learning_rate_rises_and_falls_until_the_end(tmp_path):
    flags = [*FEW, '--max_iters=13', '--warmup_iters=4', '--learning_rate=1e-2', '--min_lr=1e-3',
             '--eval_interval=20']
    assert train_here(*flags, f'--out_dir={tmp_path}') == 0
    rates = log_of(tmp_path, 'lr')
    assert rates[:5] == pytest.approx([0.2e-2, 0.4e-2, 0.6e-2, 0.8e-2, 1e-2])
    for i, rate in enumerate(rates[4:]):
        assert rate == pytest.approx(1e-3 + 9e-3 * (1 + math.cos(math.pi * i / 9)) / 2)
    assert rates == sorted(rates[:5]) + sorted(rates[5:], reverse=True)


# --- replay ---

def talk_rows(example):
    """-> (which of the Talks, its question in text, that of the answer, what is heard) of each"""
    m, b = len(example.talk), example.batch
    texts = texts_of(b.asked[-m:]), texts_of(b.wanted[-m:]), transcribe(b.question[-m:])
    return list(zip(example.talk.tolist(), *texts, strict=True))


def by_lot(examples, size):
    """The examples of a task -> for each Lot {which of the Talks: the rest of its row}"""
    lots = [examples[i:i + size] for i in range(0, len(examples), size)]
    found = [{row[0]: row[1:] for example in lot for row in talk_rows(example)} for lot in lots]
    assert all(sorted(lot) == list(range(len(found[0]))) for lot in found)
    return found


REPLAY = ['--tasks=mod', '--aloud=mod', '--batch_size=4', '--replay=0.5', '--pauses=6', '--think=1',
          '--eval_samples=1', '--eval_interval=100', '--w_so_far=0']


def test_conversations_of_who_answers_right_go_on_from_lot_to_lot(tmp_path, trained_on,
                                                                  monkeypatch):
    reply = lessons.reply

    def right(model, frames, batch):
        s = model.spectrum
        frames = s.log(s.magnitude(s.stft(batch.answer)))
        wave, is_right = reply(model, frames[-2:], batch)
        assert is_right.all()
        return wave, is_right

    of_updates(monkeypatch, 2)
    monkeypatch.setattr(lessons, 'reply', right)
    flags = [*REPLAY, '--max_iters=16', '--gradient_accumulation_steps=2']
    assert train_here(*flags, f'--out_dir={tmp_path}') == 0
    lots = by_lot(trained_on, 4)
    assert len(lots) == 8 and len(lots[0]) == 8
    goes_on, ends = 0, 0
    for before, now in zip(lots, lots[1:], strict=False):
        for i, (asked, wanted, _) in before.items():
            if asked == wanted:
                ends += 1
            else:
                assert now[i][0] == now[i][2] == wanted
                goes_on += 1
    assert goes_on > 10 and ends > 2


def test_who_answers_wrong_is_asked_again_in_the_next_lot(tmp_path, trained_on, monkeypatch):
    of_updates(monkeypatch, 2)
    assert train_here(*REPLAY, '--max_iters=6', f'--out_dir={tmp_path}') == 0
    first, *others = by_lot(trained_on, 2)
    again = [lot[i][:2] == first[i][:2] for lot in others for i in first]
    assert len(again) == 8 and sum(again) >= 4


@pytest.mark.parametrize('replay, n', [(0, 0), (0.1, 0), (0.25, 2), (1, 8)])
def test_so_many_rows_are_conversations(replay, n, tmp_path, trained_on):
    flags = [*FEW, '--tasks=mod,mirror', '--aloud=mod', '--mix=1,1', '--batch_size=8']
    assert train_here(*flags, f'--replay={replay}', f'--out_dir={tmp_path}') == 0
    found = {len(example.talk) for example in trained_on}
    assert found == {0, n}
    assert all(len(example.batch.asked) == 8 for example in trained_on)


# --- what a CUDA graph cannot ---

class Reads(TorchDispatchMode):
    """Collects who makes numbers of tensors, or shapes of their values, in train.py or lots.py"""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            stack = traceback.extract_stack()
            # The optimizer does on a CPU.
            if not any('optimizer' in frame.filename for frame in stack):
                ours = 'train.py', 'lots.py'
                self.found += [frame.name for frame in stack if frame.filename.endswith(ours)]
        return function(*args, **kwargs or {})


def test_an_update_reads_no_number_back(tmp_path, monkeypatch):
    of_updates(monkeypatch, 2)
    flags = ['--tasks=mod,reverse', '--aloud=mod', '--sound=real', '--replay=0.5', '--hide=0.5',
             '--pauses=2', '--mix=2,1', '--halting=True', '--eval_interval=6', '--curriculum=1']
    with Reads() as reads:
        assert train_here(*FEW, *flags, '--batch_size=4', f'--out_dir={tmp_path}') == 0
    assert '<module>' in reads.found  # which logs them
    in_graphs = {'step', 'examples', 'batch', 'replied', 'refill', 'drawn', 'kept'}
    assert not in_graphs & set(reads.found)


# --- two processes ---

def test_two_processes_are_one(tmp_path):
    flags = [*UNTESTED, *ALL_TASKS[:1], '--aloud=mod', '--log_interval=1', '--eval_interval=6',
             '--pauses=1,0,2', '--hide=0.5', '--mix=1', '--eval_samples=2', '--think=2']
    one, two = tmp_path / 'one', tmp_path / 'two'
    assert run_here('train.py', *flags, f'--out_dir={one}')[0] == 0
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    command = [sys.executable, *launcher, path_of('train.py'), *flags, f'--out_dir={two}']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    p = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert p.returncode == 0, p.stderr
    assert log_of(one, 'task') == log_of(two, 'task')
    assert len(log_of(one)) == len(log_of(two)) == 7
    assert log_of(two, 'loss') == pytest.approx(log_of(one, 'loss'), abs=1e-4)
    a, b = checkpoint_in(one)['model'], checkpoint_in(two)['model']
    assert all(torch.allclose(a[key], b[key], atol=1e-3) for key in a)


# --- bad numbers ---

def no_numbers(batch):
    return batch._replace(question=batch.question * math.nan)


@pytest.mark.parametrize('bad, flags, code, skipped', [
    ({2, 4}, [], 0, [0, 1, 1, 2, 2, 2]),
    ({4, 5, 6, 7}, ['--max_iters=9'], 0, [0, 0, 0, 1, 2, 3, 4, 4, 4]),
    ({6}, [], 1, [0] * 5),                           # at the very end
    (range(4, 99), ['--max_iters=99'], 1, [0, 0, 0, 1, 2, 3, 4]),  # five in a row
])
def test_bad_numbers_never_reach_the_weights(bad, flags, code, skipped, tmp_path, change_batches,
                                             capsys):
    change_batches(lambda n, batch: no_numbers(batch) if n in bad else batch)
    assert train_here(f'--out_dir={tmp_path}', *FEW, *flags) == code
    assert log_of(tmp_path, 'skipped') == skipped
    assert all_finite(tmp_path)
    said = capsys.readouterr().err
    if code:  # an end that says what to try; what was saved before it is as it was
        assert is_one_line(said)
        assert 'try a lower learning_rate' in said and '--init_from=resume' in said
        assert checkpoint_in(tmp_path)['iter_num'] == 3


def test_losses_of_degenerate_sounds_are_finite(tmp_path, change_batches):
    ones = torch.ones(64000)
    square = torch.sign(torch.sin(torch.arange(64000) / 3.0))
    sounds = [0 * ones, ones, square, -ones]

    def degenerate(n, batch):
        S = batch.question.shape[1]
        question, answer = (sounds[i % 4][:S].expand(2, -1) for i in (n, n // 4))
        return batch._replace(question=question, answer=answer)

    change_batches(degenerate)
    flags = [*FEW, '--max_iters=16', '--eval_interval=20']
    assert train_here(f'--out_dir={tmp_path}', *flags) == 0
    assert log_of(tmp_path, 'skipped') == [0] * 16
    assert all(math.isfinite(norm) for norm in log_of(tmp_path, 'norm'))


# --- an end that comes from outside ---

def train_quietly(*flags):
    """train.py in a process that has torch loaded already"""
    sys.stdout = sys.stderr = open(os.devnull, 'w')
    sys.exit(train_here(*flags))


@pytest.mark.parametrize('kills, iters', [
    (1, 12), pytest.param(20, 120, marks=pytest.mark.long),
])
def test_kills_change_nothing(kills, iters, tmp_path):
    processes = multiprocessing.get_context('forkserver')
    processes.set_forkserver_preload(['torch', 'tqdm', 'tests.test_train'])
    flags = [*FEW, '--eval_interval=2', f'--max_iters={iters}']
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    log, checkpoint = killed / 'log.jsonl', killed / 'ckpt.pt'
    rng = random.Random(0)

    def go_on():
        start = '--init_from=resume' if checkpoint.exists() else '--init_from=scratch'
        return *flags, start, f'--out_dir={killed}', '--overwrite=true'

    def trace(save_first):
        """What changes when it trains, or when it has saved a checkpoint"""
        if save_first:
            return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        return log.stat().st_size if checkpoint.exists() else 0

    for i in range(kills):
        save_first = i % 2 == 0  # or it might be killed before each first save, and get nowhere
        before = trace(save_first)
        p = processes.Process(target=train_quietly, args=go_on())
        p.start()
        while p.is_alive() and trace(save_first) == before:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.15))  # at some moment of the next iterations
        p.kill()
        p.join()
        assert p.exitcode == -signal.SIGKILL
    assert kills // 2 < checkpoint_in(killed)['iter_num'] < iters
    assert train_here(*go_on()) == 0
    assert train_here(*flags, f'--out_dir={whole}') == 0
    for name in ('ckpt.pt', 'best.pt'):
        one, other = checkpoint_in(whole, name), checkpoint_in(killed, name)
        assert same_weights(one, other)
        assert one['iter_num'] == other['iter_num']
    assert {'command', 'commit', 'torch'} <= set(one['provenance'])


@pytest.mark.parametrize('number, code', [
    (signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long),
])
def test_ctrl_c_saves_and_says_how_to_go_on(number, code, tmp_path):
    command = [sys.executable, path_of('train.py'), *UNTESTED, '--max_iters=100000',
               '--eval_interval=100000', f'--out_dir={tmp_path}']
    p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not p.stdout.readline().startswith('iter '):
        pass
    p.send_signal(number)
    time.sleep(0.05)
    p.send_signal(number)  # as timeout does: once to the process, once to its group
    out, err = p.communicate(timeout=60)
    assert p.returncode == code
    assert '--init_from=resume' in out
    assert 'Traceback' not in err
    assert checkpoint_in(tmp_path)['iter_num'] >= 2


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path):
    assert train_here('--max_iters=3', f'--out_dir={tmp_path}') == 0
    before = {name: (tmp_path / name).read_bytes() for name in ('best.pt', 'ckpt.pt')}

    def limit():
        most = len(before['ckpt.pt']) // 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    command = [sys.executable, path_of('train.py'), *UNTESTED, f'--out_dir={tmp_path}',
               '--init_from=resume']
    p = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, cwd=ROOT)
    assert p.returncode == 1, p.stdout + p.stderr
    assert 'cannot write' in p.stderr
    assert is_one_line(p.stderr)
    for name, contents in before.items():
        assert (tmp_path / name).read_bytes() == contents
    assert not list(tmp_path.glob('*.tmp'))

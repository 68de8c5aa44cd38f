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
import weakref

import pytest
import torch

import exam
import fast.graphs
import prepare
from checkpoint import load_checkpoint
from tasks import TASKS
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


@pytest.fixture
def change_batches(monkeypatch):
    """Give it change(n, batch) -> batch, and it is done to the n-th training batch from now on"""
    def change_with(change):
        made = []

        def make(task, split, *args, **more):
            batch = make_batch(task, split, *args, **more)
            if split != 'train':
                return batch
            made.append(task)
            return change(len(made), batch)

        monkeypatch.setattr(prepare, 'make_batch', make)

    make_batch = prepare.make_batch
    return change_with


# --- a run goes on where it stopped ---

def end_at(number):
    """A change of batches: a SIGTERM, as from outside, while a batch is made"""
    def change(n, batch):
        if n == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch

    return change


TWO_TASKS = ['--tasks=mod,bracket', '--aloud=mod,bracket']


@pytest.mark.parametrize('flags, batches', [
    (['--tasks=mirror,mod', '--aloud=mod', '--sound=real', '--hide=0.5', '--pauses=2', '--mix=1,2',
      '--eval_interval=6', '--gradient_accumulation_steps=2'], 2 * 4),
    ([*TWO_TASKS, '--muon=True', '--curriculum=0.5', '--halting=True'], 4),
])
def test_training_goes_on_where_it_stopped_bit_for_bit(flags, batches, tmp_path, change_batches):
    flags = [*flags[:2], *FEW, '--batch_size=4', '--think=2', *flags[2:]]
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    assert train_here(*flags, f'--out_dir={whole}') == 0
    change_batches(end_at(batches))
    assert train_here(*flags, f'--out_dir={parts}') == 143
    assert checkpoint_in(parts)['iter_num'] == 4
    assert train_here(*flags, f'--out_dir={parts}', '--init_from=resume') == 0
    a, b = checkpoint_in(whole), checkpoint_in(parts)
    assert a['iter_num'] == b['iter_num'] == 6
    assert (a['wrong'], a['best']) == (b['wrong'], b['best'])
    assert log_of(whole) == log_of(parts)
    assert same_weights(a, b)


def test_with_replay_it_goes_on_with_conversations_that_begin_anew(tmp_path, change_batches):
    flags = [*TWO_TASKS, *FEW, '--batch_size=4', '--think=2', '--replay=0.5', '--hide=0.5']
    change_batches(end_at(2 + 4))  # two begin conversations
    assert train_here(*flags, f'--out_dir={tmp_path}') == 143
    assert train_here(*flags, f'--out_dir={tmp_path}', '--init_from=resume') == 0
    assert log_of(tmp_path, 'iter')[-1] == 6
    weights = checkpoint_in(tmp_path)['model']
    assert all(torch.isfinite(x).all() for x in weights.values())


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

def test_what_is_easy_is_trained_and_validated_alone(tmp_path, monkeypatch):
    made, make_batch = {}, prepare.make_batch

    def make(task, split, *args, **more):
        batch = make_batch(task, split, *args, **more)
        made.setdefault(split, []).extend(texts_of(batch.asked))
        return batch

    monkeypatch.setattr(prepare, 'make_batch', make)
    assert train_here('--tasks=mod', '--difficulty=0.4', '--batch_size=100', '--max_iters=1',
                      '--eval_samples=1', '--max_iters=1', f'--out_dir={tmp_path}') == 0
    assert len(made['train']) >= 100 and len(made['val']) >= 50
    for split in ('train', 'val'):
        divisors = [d for text in made[split] for d in text.split('%')[1:]]
        assert max(len(d.lstrip('0')) for d in divisors) == 1


def test_fixed_shares_of_tasks_and_a_difficulty_that_rises_with_time(tmp_path):
    flags = [*ALL_TASKS, *FEW, '--max_iters=24', '--eval_interval=12', '--mix=1,0,3',
             '--curriculum=0.5']
    assert train_here(*flags, f'--out_dir={tmp_path}') == 0
    turns = log_of(tmp_path, 'task')
    assert 0 < turns.count('mirror') < turns.count('mod')
    assert turns.count('bracket') == 0
    assert log_of(tmp_path, 'odds') == [{'mirror': 1, 'bracket': 0, 'mod': 3}] * 2
    assert log_of(tmp_path, 'level') == pytest.approx([2 * 11 / 24, 1])


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


def test_the_examples_of_a_graph_live_as_long_as_it(monkeypatch):
    made = []

    def examples(task):
        made.append(torch.zeros(3))
        yield made[-1]

    def capture(f, generator):
        """As a graph does, it keeps no hold of what f uses."""
        return None, None

    monkeypatch.setattr(torch.cuda, 'Stream', object)
    monkeypatch.setattr(fast.graphs, 'capture', capture)
    graphs, update = fast.graphs.in_graphs(examples, lambda task, made: None, None)
    with pytest.raises(AttributeError):  # there is no graph to replay
        update('mirror')
    of_graph = weakref.ref(made.pop())
    assert of_graph() is not None
    graphs.clear()
    assert of_graph() is None


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
    ones = torch.ones(32000)
    square = torch.sign(torch.sin(torch.arange(32000) / 3.0))
    sounds = [0 * ones, ones, square, -ones]

    def degenerate(n, batch):
        question, answer = sounds[n % 4], sounds[n // 4 % 4]
        return batch._replace(question=question.expand(2, -1), answer=answer.expand(2, -1))

    change_batches(degenerate)
    flags = [*FEW, '--w_ctc=1', '--max_iters=16', '--eval_interval=20']
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

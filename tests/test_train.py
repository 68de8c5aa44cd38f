"""
Training: it resumes, survives kills, full disks and bad numbers, and is the same in two processes.

$ python -m pytest tests/test_train.py
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

import prepare
import score
from checkpoint import load_checkpoint
from model import JMambaConfig, MiniJMamba
from prepare import play
from results import MARK
from tests.helpers import (
    ROOT,
    TRAIN,
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


def train_here(*flags):
    """train.py in this process -> its exit code"""
    return run_here('train.py', *UNTESTED, *flags)[0]


def names_of_train(*flags):
    """train.py in this process, which must succeed -> its names"""
    code, names = run_here('train.py', *UNTESTED, *flags)
    assert code == 0
    return names


def checkpoint_in(folder, name='ckpt.pt'):
    return torch.load(folder / name, weights_only=True)


def log_of(folder, key=None):
    """The rows of a run's log, or what those that have it have under a key"""
    rows = rows_of(folder / 'log.jsonl')
    if key is None:
        return rows
    return [row[key] for row in rows if key in row]


def same_weights(a, b):
    return all(torch.equal(a['model'][key], b['model'][key]) for key in a['model'])


def all_finite(folder):
    return all(w.isfinite().all() for w in checkpoint_in(folder)['model'].values())


@pytest.fixture
def change_batches(monkeypatch):
    """Give it change(n, batch) -> batch, and it is done to the n-th training batch from now on"""
    def change_with(change):
        made, make_batch = [], original

        def make(task, split, *args, **more):
            batch = make_batch(task, split, *args, **more)
            if split != 'train':
                return batch
            made.append(task)
            return change(len(made), batch)

        monkeypatch.setattr(prepare, 'make_batch', make)

    original = prepare.make_batch
    return change_with


# --- a run goes on where it stopped ---

def test_training_resumes_where_it_stopped(tmp_path):
    whole, halves = tmp_path / 'whole', tmp_path / 'halves'
    flags = [*ALL_TASKS, '--pauses=2', '--hide=0.5', '--think=2',
             '--sound=real']
    assert train_here(*flags, f'--out_dir={whole}') == 0
    assert train_here(*flags, f'--out_dir={halves}', '--max_iters=3') == 0
    run('train.py', *UNTESTED, *flags, f'--out_dir={halves}', '--init_from=resume')
    a, b = checkpoint_in(whole), checkpoint_in(halves)
    assert same_weights(a, b)
    assert (a['wrong'], a['best']) == (b['wrong'], b['best'])
    for x, y in zip(log_of(whole), log_of(halves), strict=True):
        assert x | {'seconds': 0} == y | {'seconds': 0}


def test_the_optimizer_takes_the_settings_of_the_run_that_resumes(tmp_path):
    assert train_here(f'--out_dir={tmp_path}', '--max_iters=3') == 0
    names = names_of_train(f'--out_dir={tmp_path}', '--init_from=resume', '--weight_decay=0.25')
    groups = names['optimizer'].param_groups
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


def test_what_is_easy_is_trained_and_validated_alone(tmp_path, monkeypatch):
    asked = []

    def evaluate(model, task, split, *args, level=None, **more):
        asked.append(level)
        return dict.fromkeys(('exact_match', 'token_accuracy', 'edit_distance'), 0.5)

    monkeypatch.setattr(score, 'evaluate', evaluate)
    names = names_of_train('--tasks=mod', '--difficulty=0.4', '--batch_size=200', '--max_iters=1',
                           f'--out_dir={tmp_path}')
    assert set(asked) == {0.4}
    [(batch, _, _)] = names['examples']('mod')
    divisors = [d for text in texts_of(batch.asked) for d in text.split('%')[1:]]
    assert max(len(d.lstrip('0')) for d in divisors) == 1


def test_a_run_that_is_done_stays_as_it_is(trained):
    before = (trained / 'ckpt.pt').read_bytes()
    assert train_here(f'--out_dir={trained}', '--init_from=resume') == 0
    assert (trained / 'ckpt.pt').read_bytes() == before


def test_weights_alone_cannot_be_resumed(tmp_path, trained, capsys):
    checkpoint = checkpoint_in(trained)
    del checkpoint['optimizer']
    torch.save(checkpoint, tmp_path / 'ckpt.pt')
    (tmp_path / MARK).touch()
    flags = [*UNTESTED, f'--out_dir={tmp_path}', '--init_from=resume']
    assert 'it holds weights only, or is damaged' in refusal(capsys, 'train.py', *flags)


def test_a_run_does_not_pass_off_an_earlier_one(tmp_path, capsys):
    (tmp_path / 'best.pt').write_bytes(b'of an earlier run')
    (tmp_path / 'scores.json').write_text('{}')
    (tmp_path / MARK).touch()
    said = refusal(capsys, 'train.py', *UNTESTED, f'--out_dir={tmp_path}')
    assert '--init_from=resume' in said and '--overwrite=true' in said
    assert {'best.pt', 'scores.json'} < set(os.listdir(tmp_path))
    # A run that blows up says so, and saves nothing of it.
    flags = [f'--out_dir={tmp_path}', '--overwrite=true', '--learning_rate=1e30',
             '--warmup_iters=0', '--grad_clip=0']
    assert train_here(*flags) == 1
    assert 'learning_rate' in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == [MARK, 'log.jsonl']


# --- what is trained on ---

def test_fixed_shares_of_tasks_and_a_difficulty_that_rises_with_time(tmp_path):
    flags = [*ALL_TASKS, '--max_iters=30', '--eval_interval=15', '--log_interval=1', '--think=1',
             '--batch_size=2', '--eval_samples=1', '--mix=1,0,3', '--curriculum=0.5']
    assert train_here(*flags, f'--out_dir={tmp_path}') == 0
    turns = log_of(tmp_path, 'task')
    assert 0 < turns.count('mirror') < turns.count('mod')
    assert turns.count('bracket') == 0
    assert log_of(tmp_path, 'odds') == [{'mirror': 1, 'bracket': 0, 'mod': 3}] * 2
    assert log_of(tmp_path, 'level') == pytest.approx([2 * 14 / 30, 1])


def test_tasks_are_drawn_by_what_is_wrong(tmp_path, monkeypatch):
    right = {'mirror': 1.0, 'bracket': 0.5, 'mod': 0.0}

    def evaluate(model, task, *args, **more):
        return dict.fromkeys(('exact_match', 'token_accuracy', 'edit_distance'), right[task])

    monkeypatch.setattr(score, 'evaluate', evaluate)
    flags = [*ALL_TASKS, '--max_iters=60', '--eval_interval=30', '--log_interval=1',
             '--batch_size=2']
    assert train_here(*flags, f'--out_dir={tmp_path}') == 0
    first, then = {'mirror': 1, 'bracket': 1, 'mod': 1}, {'mirror': 0.1, 'bracket': 0.5, 'mod': 1}
    assert log_of(tmp_path, 'odds') == [first, then]
    turns = log_of(tmp_path, 'task')[30:]
    assert turns.count('mirror') < turns.count('bracket') < turns.count('mod')
    assert turns.count('mirror') > 0


@pytest.mark.parametrize('task', ['mirror', 'bracket', 'mod'])
def test_what_may_be_generated_is_what_is_new(task, tmp_path):
    names = names_of_train(*ALL_TASKS, '--pauses=6', '--hide=0.75', '--batch_size=64',
                           '--max_iters=1', '--eval_samples=1', f'--out_dir={tmp_path}')
    s = MiniJMamba(JMambaConfig()).spectrum
    [(b, may_generate, hidden)] = names['examples'](task)
    asked, wanted = (s.magnitude(s.stft(play(x, b.rhythm, b.question.shape[1])))
                     for x in (b.asked, b.wanted))
    off = (asked - wanted).abs().amax(2)
    assert off[~may_generate].max() < 0.01
    assert may_generate.any()
    assert (off > 0.2)[may_generate].any() == (task != 'mirror')
    if task == 'bracket':
        assert hidden is None
    else:
        assert 20 < (~hidden.visible.all(1)).sum() < 64
        example = torch.arange(64)
        others = torch.where(hidden.visible.all(1), example, example ^ 1)
        assert torch.equal(hidden.neighbour, others)


@pytest.mark.parametrize('task', ['reverse', 'twice'])
def test_what_is_played_elsewhere_cannot_be_generated(task, tmp_path):
    names = names_of_train(f'--tasks={task}', '--batch_size=8', '--max_iters=1',
                           f'--out_dir={tmp_path}')
    s = MiniJMamba(JMambaConfig()).spectrum
    [(b, may_generate, _)] = names['examples'](task)
    level = s.magnitude(s.stft(b.answer)).amax(2)
    assert level[may_generate].max() < 0.5
    assert (level[~may_generate] > 0.1).float().mean() > 0.8


def test_what_changes_is_always_visible(tmp_path):
    names = names_of_train(*ALL_TASKS, '--hide=1', '--batch_size=64', '--max_iters=1',
                           '--eval_samples=1', f'--out_dir={tmp_path}')
    [(b, _, hidden)] = names['examples']('mod')
    token_ends = 800 * (1 + torch.arange(hidden.visible.shape[1]))
    assert hidden.visible[token_ends <= b.changed[:, None]].all()
    assert not hidden.visible.all()


def test_the_examples_of_a_graph_live_as_long_as_it(tmp_path, monkeypatch):
    capture_step = names_of_train('--max_iters=1', f'--out_dir={tmp_path}')['capture_step']
    scope, kept = capture_step.__globals__, []
    examples = scope['examples']

    def watched(task):
        for batch, *told in examples(task):
            kept.append(weakref.ref(batch.question))
            yield batch, *told

    def capture(f, generator):
        """As a graph does, it keeps no hold of what f uses."""
        return None, None

    monkeypatch.setattr(torch.cuda, 'Stream', object)
    monkeypatch.setitem(scope, 'capture', capture)
    monkeypatch.setitem(scope, 'examples', watched)
    graph = capture_step('mirror')
    assert len(kept) == 1
    assert kept[0]() is not None
    del graph
    assert kept[0]() is None


def test_the_learning_rate(tmp_path):
    names = names_of_train(f'--out_dir={tmp_path}', '--max_iters=104', '--warmup_iters=4',
                           '--eval_interval=104', '--learning_rate=1e-2', '--min_lr=1e-3')
    rates = [names['get_lr'](i) for i in (0, 3, 4, 54, 104)]
    wanted = [0.2e-2, 0.8e-2, 1e-2, 5.5e-3, 1e-3]
    assert rates == pytest.approx(wanted)


# --- two processes ---

def test_two_processes_are_one(tmp_path):
    flags = [*UNTESTED, '--tasks=mirror,bracket,mod', '--aloud=mod', '--log_interval=1',
             '--pauses=1,0,2', '--hide=0.5', '--mix=1']
    one, two = tmp_path / 'one', tmp_path / 'two'
    assert run_here('train.py', *flags, f'--out_dir={one}')[0] == 0
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    command = [sys.executable, *launcher, path_of('train.py'), *flags, f'--out_dir={two}']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    p = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert p.returncode == 0, p.stderr
    assert log_of(one, 'task') == log_of(two, 'task')
    assert len(log_of(one)) == len(log_of(two)) == 8
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
    assert train_here(f'--out_dir={tmp_path}', '--log_interval=1', *flags) == code
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
        return batch._replace(question=question.expand(4, -1), answer=answer.expand(4, -1))

    change_batches(degenerate)
    flags = ['--w_ctc=1', '--max_iters=16', '--log_interval=1']
    assert train_here(f'--out_dir={tmp_path}', *flags) == 0
    assert log_of(tmp_path, 'skipped') == [0] * 16
    assert all(math.isfinite(norm) for norm in log_of(tmp_path, 'norm'))


# --- an end that comes from outside ---

def train_quietly(*flags):
    """train.py in a process that has torch loaded already"""
    sys.stdout = sys.stderr = open(os.devnull, 'w')
    sys.exit(train_here(*flags))


def test_twenty_kills_change_nothing(tmp_path):
    processes = multiprocessing.get_context('forkserver')
    processes.set_forkserver_preload(['torch', 'tqdm', 'tests.test_train'])
    flags = ['--eval_interval=2', '--eval_samples=1', '--log_interval=1', '--max_iters=120']
    log, checkpoint = (tmp_path / 'killed' / name for name in ('log.jsonl', 'ckpt.pt'))
    rng = random.Random(0)

    def start(folder):
        more = [f'--out_dir={tmp_path / folder}']
        if (tmp_path / folder / 'ckpt.pt').exists():
            more.append('--init_from=resume')
        p = processes.Process(target=train_quietly, args=(*flags, *more))
        p.start()
        return p

    def trace(save_first):
        """What changes when it trains, or when it has saved a checkpoint"""
        if save_first:
            return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        return log.stat().st_size if checkpoint.exists() else 0

    for i in range(int(os.environ.get('KILLS', 20))):
        save_first = i % 2 == 0  # or it might be killed before each first save, and get nowhere
        before = trace(save_first)
        p = start('killed')
        while p.is_alive() and trace(save_first) == before:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.15))  # at some moment of the next iterations
        p.kill()
        p.join()
        assert p.exitcode == -signal.SIGKILL
    assert 10 <= checkpoint_in(tmp_path / 'killed')['iter_num'] < 120
    for folder in ('killed', 'whole'):
        p = start(folder)
        p.join()
        assert p.exitcode == 0
    for name in ('ckpt.pt', 'best.pt'):
        whole, killed = (checkpoint_in(tmp_path / d, name) for d in ('whole', 'killed'))
        assert same_weights(whole, killed)
        assert whole['iter_num'] == killed['iter_num']
    assert {'command', 'commit', 'torch'} <= set(whole['provenance'])


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
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

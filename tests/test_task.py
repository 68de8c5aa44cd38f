"""
A task that nobody has heard of goes through every program, with no other edit; and what is wrong
with a task is said before it is used.

$ python -m pytest tests/test_task.py
"""
import json

import pytest
import torch

from audio.files import read_wav
from tasks import REST, TASKS, Split, Task, check, draw, encode, n_labels, so_far
from tasks import mirror as mirror_file
from tasks.task import LETTERS
from tests.helpers import TRAIN, gen, is_png, output, path_of, refusal, rows_of, run_here
from transcribe import transcribe

TEN = 'ABCDEFGHIJ'
A = encode('A')[0]


def draw_letters(n, generator, device, high=6):
    q = A + torch.randint(5, (n, high), generator=generator, device=device)
    length = torch.randint(2, high + 1, (n, 1), generator=generator, device=device)
    q = torch.where(torch.arange(high, device=device) < length, q, REST)
    return q, torch.ones(n, dtype=torch.bool, device=device)


def answer(q):
    """The first letter is played twice, and the second left out."""
    a = q.clone()
    a[:, 1] = q[:, 0]
    return a


def solve(text):
    if len(text) < 2 or set(text) - set(TEN):
        raise ValueError
    return text[0] + text[0] + text[2:]


SPLITS = {
    'train': Split('training', 'train'),
    'val': Split('validation', 'val'),
    'val_ood': Split('validation, up to 7', 'far', dict(high=7)),
    'iid': Split('2 to 6 letters', 'test'),
    'ood_length_8': Split('up to 8 letters', 'far', dict(high=8)),
}
echo2 = Task('echo2', TEN, 'AB', draw_letters, SPLITS, answer, solve)


@pytest.fixture(scope='module', autouse=True)
def registry():
    """For as long as this file is tested, there is one more task."""
    TASKS['echo2'] = echo2
    yield
    del TASKS['echo2']


# --- it goes through every program ---

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
    text = output(capsys, 'lab.figures', folder, f'--out={picture}')
    assert '| echo2 | seeds | questions | iid | ood_length_8 | seconds |' in text
    assert is_png(picture)
    picture = tmp_path / 'pointer.png'
    output(capsys, 'lab.inside', 'pointer', folder, f'--out={picture}')
    assert is_png(picture)


def test_bench(config, tmp_path, capsys):
    path = tmp_path / 'bench.json'
    output(capsys, 'lab.bench', '--parts=step', f"--configs={config.with_suffix('')}",
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


# --- what is wrong with it is said ---

def example_in(path):
    """The Python of a README that ends in a Task -> its text and its names"""
    with open(path_of(path), encoding='utf-8') as f:
        blocks = [block.partition('```')[0] for block in f.read().split('```py\n')[1:]]
    text, = [block for block in blocks if '\ntask = Task(' in block]
    names = {}
    exec(text, names)
    return text, names['task']


highest = example_in('tasks/README.md')[1]


@pytest.fixture
def register(monkeypatch):
    """Register a task, for one test"""
    def enter(task):
        monkeypatch.setitem(TASKS, task.name, task)
        return task.name
    return enter


def test_the_example_of_the_readme_is_a_task(register):
    check(register(highest))
    assert highest.working('CAFB') == ['CAFB', 'CFB', 'FB', 'F']
    assert highest.solve('LKE') == 'K'  # which is lower than F and higher than E
    text, _ = example_in('tasks/README.md')
    assert len([line for line in text.splitlines() if line]) <= 36


@pytest.mark.parametrize('name', [name for name in TASKS if name != 'echo2'])
def test_each_task_passes_its_check_and_disturbs_no_generator(name):
    before = torch.get_rng_state()
    check(name)
    assert torch.equal(torch.get_rng_state(), before)


def with_split(name, *split):
    return {'splits': {**highest.splits, name: Split(*split)}}


def solve_badly(text):
    """Right, unless the first letter is the highest"""
    best = max(text, key=LETTERS.index)
    return text[-1] if text[0] == best else best


def solve_with_a_table(text):
    return max(text, key={letter: i for i, letter in enumerate(LETTERS)}.get)


def refuse(text):
    raise ValueError


def without_the_last(text):
    return highest.working(text)[:-1] or [text]


def without_the_second(text):
    lines = highest.working(text)
    return lines[:1] + lines[2:] if len(lines) > 2 else lines


def goes_on(q):
    """The answer does not stay."""
    line = highest.next_line(q)
    return torch.where((q == line).all(1, keepdim=True), REST, line)


def draw_undisturbed(n, generator, device, **arguments):
    return mirror_file.draw(n, None, device, **arguments)


def draw_only(*args, **arguments):
    return mirror_file.draw(*args, **arguments)[0]


def draw_floats(*args, **arguments):
    q, fits = mirror_file.draw(*args, **arguments)
    return q.float(), fits


@pytest.mark.parametrize('broken, says', [
    # splits
    ({'splits': {'train': highest.splits['train']}},
     "it has no split 'val'; give it train, val, val_ood, iid"),
    (with_split('train', '', 'far'), "the bucket of split 'train' is 'far'; let it be 'train'"),
    (with_split('more', '', 'tset'),
     "the bucket of split 'more' is 'tset'; let it be one of train, val, far, test"),
    (with_split('more', '', 'far', dict(hihg=20)),
     "split 'more' cannot be drawn with {'hihg': 20}; its draw says draw() got an unexpected "
     "keyword argument 'hihg'"),
    ({'levels': ('iid', 'easy')},
     "its level 'easy' is no split; name splits that are easy, medium and hard"),
    # drawing
    ({'draw': draw_undisturbed}, "the same seed draws other questions of split 'train'; let all "
                                 "random numbers come from the generator"),
    ({'draw': draw_only}, "draw must give integers (n, N), the questions, and bool (n,), which "
                          "are as asked"),
    ({'draw': draw_floats}, "draw must give integers"),
    ({'wishes': ('alowd',)}, "nobody grants the wish 'alowd'; they are some of level, aloud, "),
    ({'wishes': ('pairs',)}, "split 'train' cannot be drawn with {'low': 1, 'pairs': True}"),
    # symbols and slots
    ({'symbols': TEN[1:]}, "'CAFB' is asked, but A is none of its symbols; name all in which"),
    ({'answer': lambda q: torch.where(q == A, len(TEN) + 99, q)}, "holds what is no symbol"),
    ({'answer': lambda q: q[:, 1:]}, "answer must give (B, N) for (B, N)"),
    ({'slots': lambda text: len(text) - 1}, "slots; let `slots` say how many they take"),
    ({'slots': lambda text: 40}, "have no room in 40 of 10 slots"),
    # answers
    ({'solve': solve_badly}, " by answer; let them agree"),
    ({'solve': refuse}, "but solve refuses it; let solve answer it, or draw say that it is not"),
    ({'solve': solve_with_a_table}, "raises TypeError; let it raise ValueError for what is no"),
    ({'source': lambda q: torch.zeros_like(q)}, "source must name the slot from which each tone"),
    # lines of working
    ({'working': None}, "give it next_line and working, or neither"),
    ({'working': None, 'next_line': None, 'wishes': ('aloud',)},
     "only a task with next_line is asked aloud; give it one, or do not wish for aloud"),
    ({'working': without_the_last}, " by the last line of working; let them agree"),
    ({'working': without_the_second}, " by next_line; let them agree"),
    ({'next_line': goes_on}, " and '' by next_line; let them agree"),
    # labels
    ({'so_far': lambda q: q}, "give it so_far and n_labels, or neither"),
    ({'so_far': lambda q: q, 'n_labels': 5, 'first_label': 112},
     "so_far gives -1 to 11; let it be 0 to 4, which n_labels says, or -1"),
    ({'so_far': lambda q: q, 'n_labels': 36, 'first_label': 101},
     "bracket has some of its labels, too; let first_label be 112"),
])
def test_what_does_not_fit_is_one_sentence(register, broken, says):
    before = torch.get_rng_state()
    with pytest.raises(ValueError) as e:
        check(register(highest._replace(**broken)))
    said = str(e.value)
    assert said.startswith('task highest: ') and says in said
    assert '\n' not in said
    assert torch.equal(torch.get_rng_state(), before)


def test_an_answer_that_has_no_room(register):
    twice = TASKS['twice']._replace(slots=len)
    with pytest.raises(ValueError, match="have no room in .* slots; let `slots` say how many"):
        check(register(twice))


def test_a_program_says_it_and_writes_nothing(register, tmp_path, capsys):
    name = register(highest._replace(solve=solve_badly))
    said = refusal(capsys, 'train.py', f'--tasks={name}', *TRAIN, f'--out_dir={tmp_path}/new')
    assert 'error: task highest: the answer to' in said
    assert not list(tmp_path.iterdir())


def test_labels_do_not_depend_on_the_order_of_tasks(monkeypatch):
    rows = {name: draw(name, 'train', 50, gen(2))[0] for name in ('mod', 'bracket', 'dyna')}
    labels = {name: so_far(name, q) for name, q in rows.items()}
    assert [int(label[label >= 0].min()) for label in labels.values()] == [0, 99, 102]
    other_order = dict(reversed(TASKS.items()))
    monkeypatch.setattr('tasks.TASKS', other_order)
    assert n_labels() == 112
    for name, q in rows.items():
        assert torch.equal(so_far(name, q), labels[name])

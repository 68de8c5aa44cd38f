"""
The puzzles in words: what is asked, and data sets.

$ python -m pytest tests/test_words.py
"""
import json
import re

import pytest

import words
from tests.helpers import files_in, output, refusal, rows_of, run_here
from tests.test_puzzles import CHECKERS

# --- what is asked ---

def solved(text):
    """The answer to a question in words, by a reader that shares no code with what wrote it"""
    if text.startswith('STATE'):
        state = re.search(r'\[(.*)\]', text)[1].split(', ')
        for op, args in re.findall(r'([A-Z_]+)\(([\d,]+)\)', text):
            i, j = [*map(int, args.split(',')), 0][:2]
            n = len(state)
            state = {
                'SWAP': [state[{i: j, j: i}.get(k, k)] for k in range(n)],
                'REVERSE': [state[i + j - k] if i <= k <= j else state[k] for k in range(n)],
                'ROTATE_LEFT': [state[(k + i) % n] for k in range(n)],
                'ROTATE_RIGHT': [state[(k - i) % n] for k in range(n)],
            }[op]
        kind, asked = re.search(r'QUERY (\w+) (\w+) ->', text).groups()
        return state[int(asked)] if kind == 'position' else str(state.index(asked))
    if text.startswith('EDGES'):
        edges = dict(re.findall(r'([AB]:\w+)->(\w+)', text))
        node, hops = re.search(r'QUERY ([AB]:\w+) hops=(\d+) ->', text).groups()
        for _ in range(int(hops)):
            node = f'{node[0]}:{edges[node]}'
        return node[2:]
    values = {name: value == '1' for name, value in re.findall(r'(\w+)=([01])', text)}
    for name, op, args in re.findall(r'(\w+)=([A-Z]+)\(([\w,]+)\)', text):
        inputs = [values[x] for x in args.split(',')]
        values[name] = {
            'AND': all(inputs), 'NAND': not all(inputs), 'OR': any(inputs),
            'NOR': not any(inputs), 'NOT': not inputs[0], 'XOR': sum(inputs) % 2 == 1,
        }[op]
    return str(int(values[re.search(r'QUERY (\w+) ->', text)[1]]))


@pytest.mark.parametrize('task', words.PUZZLES)
def test_questions_in_words_are_answered_rightly_at_three_levels(task):
    lengths = []
    for level in (1, 2, 3):
        draw = words.draw_of(1, task, level)
        asked = [words.question(task, level, draw) for _ in range(200)]
        assert len({text for text, _, _ in asked}) > 150
        for text, target, more in asked:
            assert target == (ruled(text, more) if task == 'inducto' else solved(text))
        lengths.append(sum(len(text) for text, _, _ in asked))
    assert task == 'inducto' or lengths == sorted(lengths)


def ruled(text, more):
    """The rule is the one that it says, in all examples"""
    shown = re.findall(r'\[([A-Z ]+)\] -> \[([A-Z ]+)\]', text)
    rule = {**words.BASE_RULES, **words.RULES[3]}[more['rule']]
    assert len(shown) == more['num_examples']
    for went_in, came_out in shown:
        assert rule(went_in.split()) == came_out.split()
    asked = re.search(r'Query: \[(.*)\] -> \?\?\?$', text)[1]
    return f"[{' '.join(rule(asked.split()))}]"


@pytest.mark.parametrize('task', words.PUZZLES)
def test_what_is_played_is_put_into_words(task):
    from tasks import draw
    from tests.helpers import gen, texts_of
    for text in texts_of(draw(task, 'iid', 50, gen(8))[0]):
        said = words.in_words(task, text)
        if task != 'inducto':
            assert solved(said) == CHECKERS[task](text)
    assert words.in_words('dyna', 'DJAGEn13^2?2') == \
        'STATE [D, J, A, G, E] || OPS REVERSE(1,3) | ROTATE_LEFT(2) || QUERY position 2 ->'
    assert words.in_words('inducto', 'BDJ>JDB?AC>') == \
        'Ex1: [B D J] -> [J D B] | Query: [A C] -> ???'


# --- data sets ---

def made(capsys, folder, *flags):
    output(capsys, 'prepare.py', '--format=text', f'--out_dir={folder}', *flags)


def test_a_data_set_in_words(tmp_path, capsys):
    made(capsys, tmp_path, '--task=all', '--total_tokens=200K')
    rows = {part: rows_of(tmp_path / 'all' / f'{part}.jsonl')
            for part in ('train', 'validation', 'test')}
    every = sum(rows.values(), [])
    assert {row['task'] for row in every} == set(words.PUZZLES)
    assert {row['difficulty'] for row in every} == {1, 2, 3}
    assert len({row['sample_id'] for row in every}) == len(every)
    assert 0.85 < len(rows['train']) / len(every) < 0.95
    texts = {part: {row['input_text'] for row in rows[part]} for part in rows}
    assert not texts['train'] & texts['test'] and not texts['train'] & texts['validation']
    for row in every:
        assert list(row) == ['input_text', 'target', 'task', 'difficulty', 'split', 'sample_id',
                             'metadata']
        if row['task'] != 'inducto':
            assert solved(row['input_text']) == row['target']
    about = json.loads((tmp_path / 'all' / 'metadata.json').read_text())
    assert about['tokens'] >= 200_000 and sum(about['questions'].values()) == len(every)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['all']  # nothing else is left


def test_the_same_seed_gives_the_same_bytes_and_no_question_changes_its_part(tmp_path, capsys):
    for folder, seed in (('a', 1), ('b', 1), ('c', 2)):
        made(capsys, tmp_path / folder, '--task=logic', '--total_tokens=50K', f'--seed={seed}')
    read = {f: {p.name: p.read_bytes() for p in (tmp_path / f / 'logic').iterdir()} for f in 'abc'}
    assert read['a'] == read['b'] != read['c']
    part_of = {}
    for folder in 'ac':
        for part in ('train', 'validation', 'test'):
            for row in rows_of(tmp_path / folder / 'logic' / f'{part}.jsonl'):
                assert part_of.setdefault(row['input_text'], part) == part


def test_hugging_face_reads_it(tmp_path, capsys, monkeypatch):
    datasets = pytest.importorskip('datasets')
    made(capsys, tmp_path, '--task=filtro', '--total_tokens=20K')
    found = datasets.load_dataset(str(tmp_path / 'filtro'), cache_dir=str(tmp_path / 'cache'))
    assert set(found) == {'train', 'validation', 'test'}
    assert found['train'][0]['input_text'].startswith('EDGES ')


@pytest.mark.parametrize('flags, says', [
    (['--task=mirror'], "task are some of dyna, inducto, filtro, logic"),
    (['--task='], "task is all or some of"),
    (['--task=dyna', '--total_tokens=many'], "total_tokens is a number such as 500K"),
    (['--task=dyna', '--levels=1,2'], "levels are three numbers"),
    (['--task=dyna', '--ratios=0,0,0'], "ratios are three numbers"),
    (['--task=dyna', '--ratios=nan,1,1'], "ratios are three numbers"),
    (['--task=dyna', '--total_tokens=0.4'], "total_tokens is a number such as 500K"),
    (['--task=dyna', '--total_tokens=1K', '--push=no/one'], "could not be uploaded"),
])
def test_what_no_data_set_can_be_made_of(flags, says, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')
    monkeypatch.chdir(tmp_path)
    if '--push=no/one' in flags:
        pytest.importorskip('huggingface_hub')
        assert run_here('prepare.py', '--format=text', *flags)[0] == 2
        assert says in capsys.readouterr().err
        return
    assert says in refusal(capsys, 'prepare.py', '--format=text', *flags)


def test_a_data_set_that_cannot_be_finished_leaves_nothing_new(tmp_path, capsys):
    flags = ['--format=text', '--task=dyna', '--total_tokens=10K', f'--out_dir={tmp_path}']
    (tmp_path / 'dyna' / 'test.jsonl').mkdir(parents=True)
    assert run_here('prepare.py', *flags)[0] == 2
    assert 'has files that this program did not make' in capsys.readouterr().err
    assert files_in(tmp_path / 'dyna') == ['test.jsonl']


def test_the_card_names_the_parts_that_there_are(tmp_path, capsys):
    made(capsys, tmp_path, '--task=dyna', '--total_tokens=5K', '--ratios=1,0,0')
    card = (tmp_path / 'dyna' / 'README.md').read_text()
    assert 'path: train.jsonl' in card and 'path: test.jsonl' not in card
    assert '--ratios=1,0,0' in card


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    text = output(capsys, 'prepare.py', '--format=text', '--task=dyna', '--dry_run=true',
                  f'--out_dir={tmp_path}')
    assert 'level' in text and 'STATE [' in text
    assert not list(tmp_path.iterdir())

"""
What is measured: lab.bench, once on the CPU and with tiny settings, and lab.readability.

$ python -m pytest tests/test_bench.py          # seconds on one CPU core
$ python -m pytest tests/test_bench.py --long   # a minute
"""
import json
import sys
from types import SimpleNamespace

import pytest

from lab.costs import COLUMNS, limits
from lab.readability import count, misplaced
from model import JMambaConfig, MiniJMamba
from tests.helpers import TINY, output, refusal

BENCH = 'lab/bench.py'


def bench(capsys, folder, *flags):
    """-> the text that it prints, and the rows of its JSON file by name"""
    path = folder / 'bench.json'
    text = output(capsys, BENCH, '--device=cpu', '--repeats=1', f'--out={path}', *flags)
    machine, *rows = json.loads(path.read_text())
    assert {'machine', 'threads', 'torch'} <= machine.keys()
    return SimpleNamespace(text=text, rows={row['what']: row for row in rows})


def test_every_line_is_printed_and_written(tmp_path, capsys):
    found = bench(capsys, tmp_path, '--parts=limits,audio,step,length', '--configs=mirror',
                  '--batch_size=2', '--minutes=0.05')
    for part in ('large matrix product', 'synthesis', 'scoring', 'mirror, d 128', 'answer'):
        assert any(what.startswith(part) for what in found.rows), part
    for what, row in found.rows.items():
        line = next(line for line in found.text.splitlines() if line.startswith(what))
        assert row['value'] > 0
        assert row['unit'] in line
    step = found.rows['mirror, d 128, batch 2: Mini-JMamba']
    assert step['examples_per_second'] == pytest.approx(2000 / step['value'])
    assert found.rows['mirror, d 128, batch 2: the audio alone']['value'] < step['value']


@pytest.mark.long
def test_a_step_is_compared_at_as_many_parameters(tmp_path, capsys):
    rows = bench(capsys, tmp_path, '--parts=step', '--configs=mod', '--batch_size=2').rows
    names = 'Mini-JMamba', 'Transformer', 'LSTM'
    ours, *others = [rows[f"mod, d 128, batch 2: {name}"] for name in names]
    for other in others:
        assert other['of'] == 'Mini-JMamba'
        assert other['speed'] == pytest.approx(ours['value'] / other['value'])
        assert other['parameters'] == pytest.approx(ours['parameters'], rel=0.02)
    assert 'speed' not in ours
    official = rows['mod, d 128, batch 2: mamba_ssm.Mamba2']
    assert official['skipped'].endswith("it needs an NVIDIA GPU")


@pytest.mark.long
def test_a_config_of_ones_own(tmp_path, capsys):
    own = tmp_path / 'own'
    own.with_suffix('.py').write_text("tasks = 'reverse'\nd_model = 64\n")
    rows = bench(capsys, tmp_path, '--parts=step', f'--configs={own}', '--batch_size=2').rows
    label = f"{own}, d 64, batch 2: "
    assert rows[label + 'Mini-JMamba']['parameters'] < 1000000
    assert label + 'Transformer' not in rows  # mod alone has others beside it


def test_what_updates_cost(tmp_path, capsys):
    own = tmp_path / 'own'
    settings = {**TINY, 'tasks': 'mirror,mod', 'aloud': 'mod', 'mix': '1,3', 'replay': 0.5,
                'hide': 0.5, 'sound': 'real', 'muon': True, 'n_encoder': 1, 'curriculum': 1.0}
    own.with_suffix('.py').write_text('\n'.join(f"{k} = {v!r}" for k, v in settings.items()))
    found = bench(capsys, tmp_path, '--parts=update', f'--configs={own}', '--batch_size=4')
    mirror, mod, mean = [found.rows[f"{own}, {name}: an update"]
                         for name in ('mirror', 'mod', 'mean')]
    # Kernels are counted on a GPU only.
    for row in mirror, mod, mean:
        assert row.keys() - {'what', 'value', 'unit'} == {'task', *COLUMNS} - {'kernels', 'short'}
        assert row['value'] == row['update']
    assert mirror['replay'] == 0 < mod['replay']
    parts = 'forward', 'backward', 'replay', 'optimizer', 'examples', 'lot'
    for part in 'update', 'tokens', 'products', 'memory', *parts:
        assert mean[part] == pytest.approx((mirror[part] + 3 * mod[part]) / 4)
    # A machine that others use varies, but parts make up most of it.
    assert 0.3 < sum(mod[part] for part in parts) / mod['update'] < 3
    assert mean['examples/s'] == pytest.approx(4000 / mean['update'])
    assert 0 < mod['counted'] <= 100
    header, = [line for line in found.text.splitlines() if line.startswith('task')]
    assert header.split() == ['task', *COLUMNS]


def test_the_least_that_layers_take():
    """32,768 tokens of ten layers at 400 TFLOP/s and 4 TB/s"""
    train = SimpleNamespace(model=MiniJMamba(JMambaConfig()), dtype='bfloat16', n_rows=256,
                            gradient_accumulation_steps=1)
    found = limits(train, 128, 400e12, 4e12)
    assert 1000 * found['products'] == pytest.approx(0.57, abs=0.01)
    assert 1000 * found['memory'] == pytest.approx(1.16, abs=0.01)


@pytest.mark.long
def test_ways_to_mix(tmp_path, capsys):
    rows = bench(capsys, tmp_path, '--parts=mixer', '--tokens=32').rows
    label = 'mixer, 128 x 32 tokens: '
    assert rows[label + 'plain']['value'] > 0
    assert rows[label + 'four kernels']['skipped'] == "it needs an NVIDIA GPU"


@pytest.mark.long
def test_long_sound(tmp_path, capsys):
    rows = bench(capsys, tmp_path, '--parts=length', '--minutes=0.5').rows
    asked = [what for what in rows if what.startswith('answer to')]
    assert asked == [f"answer to {seconds} s of sound" for seconds in (1, 3, 10, 30)]
    if sys.platform == 'linux':
        growth = rows['memory grows with length to the power of, from 10 s on']['value']
        assert 0.5 < growth < 1.5


@pytest.mark.long
def test_the_release_in_a_stream_and_on_long_numbers(tmp_path, capsys):
    rows = bench(capsys, tmp_path, '--parts=digits,listen', '--digits=10', '--questions=6').rows
    assert rows['10 digits, 43 passes']['unit'] == 's'
    assert rows['listening, 6 questions']['value'] == 100


@pytest.mark.long
def test_the_scorer_in_noise(tmp_path, capsys):
    rows = bench(capsys, tmp_path, '--parts=scorer').rows
    right = [rows[f"scorer, 10,000 symbols, {db} dB signal to noise"]['value']
             for db in ('inf', 10, 0, -5, -10)]
    assert right[:3] == [100, 100, 100]
    assert right[3] > 99 and right[4] > 90


def test_a_config_of_several_tasks_is_refused(capsys):
    said = refusal(capsys, BENCH, '--configs=multitask')
    assert "one task, not 'multitask'" in said


# --- how the code reads ---

def test_lines_tokens_and_functions_are_counted(tmp_path):
    path = tmp_path / 'a.py'
    path.write_text('"""A\ndocstring"""\n# why\nx = 1  # no line of comment\n\n'
                    'twice = lambda y: 2 * y\n\ndef f():\n    """Says"""\n    return x\n')
    n = count(path)
    assert (n.lines, n.code, n.comments, n.lambdas, n.longest) == (10, 4, 1, 1, 3)
    assert n.tokens == 3 + 8 + 5 + 2


@pytest.mark.parametrize('graph, says', [
    ({'model.py': {'prepare.py', 'tasks/mod.py', 'audio/files.py'}}, ''),
    ({'model.py': {'think.py'}}, 'model.py imports think.py, which does not stand before it'),
    ({'think.py': {'lab/bench.py'}}, 'think.py imports lab/bench.py'),
    ({'score.py': {'lab/mistakes.py', 'exam.py'}}, ''),
    ({'train.py': {'lab/mistakes.py'}}, 'train.py imports lab/mistakes.py'),
    ({'fast/graphs.py': {'lab/bench.py'}}, 'but fast/ does without lab/'),
    ({'extra.py': set()}, 'extra.py stands at the top level'),
    ({'lab/a.py': {'lab/b.py'}, 'lab/b.py': {'lab/a.py'}}, 'imports go round in a circle'),
])
def test_what_stands_behind_is_not_imported(graph, says):
    found = misplaced(graph)
    assert bool(found) == bool(says)
    assert all(says in sentence for sentence in found)

"""
bench.py, once on the CPU and with tiny settings.

$ python -m pytest tests/test_bench.py      # half a minute on one CPU core
"""
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def bench(*flags, code=0):
    """What bench.py prints, errors included"""
    command = [sys.executable, os.path.join(ROOT, 'bench.py'), '--device=cpu', *flags]
    p = subprocess.run(command, capture_output=True, text=True)
    assert p.returncode == code, p.stdout + p.stderr
    return p.stdout + p.stderr


@pytest.fixture(scope='module')
def found(tmp_path_factory):
    """The text that it printed, the rows of its JSON file by name, and a config of one's own"""
    folder = tmp_path_factory.mktemp('bench')
    own = str(folder / 'own')
    with open(own + '.py', 'w') as f:
        f.write("tasks = 'reverse'\nd_model = 64\n")
    text = bench(f"--configs=mod,{own}", '--repeats=1', '--batch_size=2', '--minutes=0.5',
                 '--tokens=32', '--questions=3', f"--out={folder / 'bench.json'}")
    rows = json.loads((folder / 'bench.json').read_text())
    assert {'machine', 'threads', 'torch'} <= rows[0].keys()
    return SimpleNamespace(text=text, rows={row['what']: row for row in rows[1:]}, own=own)


def test_every_line_is_printed_and_written(found):
    rows = found.rows
    parts = ['matrix product', 'synthesis', 'scoring', 'mod, d 128', 'scan', 'answer', 'listening',
             'scorer']
    for part in parts:
        assert any(what.startswith(part) for what in rows), part
    for what, row in rows.items():
        line = next(line for line in found.text.splitlines() if line.startswith(what))
        if 'skipped' in row:
            assert line.endswith('skipped: ' + row['skipped'])
        else:
            assert row['value'] > 0
            assert row['unit'] in line
        if 'speed' in row:
            assert line.endswith(f"{row['speed']:.3g} x {row['of']}")


def test_speed_is_that_beside_another_line(found):
    rows = found.rows
    pairs = [
        ('mod, d 128, batch 2: ', 'Mini-JMamba', 'Transformer'),
        ('mod, d 128, batch 2: ', 'Mini-JMamba', 'LSTM'),
        ('scan, 128 x 32 tokens: ', 'recurrence', 'ssd'),
    ]
    for label, of, what in pairs:
        row, beside = rows[label + what], rows[label + of]
        assert row['of'] == of
        assert row['speed'] == pytest.approx(beside['value'] / row['value'])
        assert 'speed' not in beside
    assert rows['scan, 128 x 32 tokens: ssd']['speed'] > 2  # 15, when nothing else runs


def test_a_step_is_compared_at_as_many_parameters(found):
    rows = found.rows
    layers = ('Mini-JMamba', 'Transformer', 'LSTM')
    n = [rows[f"mod, d 128, batch 2: {layer}"]['parameters'] for layer in layers]
    assert n[0] == 1498223
    assert len(set(n)) == 3
    assert max(n) < 1.02 * min(n)
    step = rows['mod, d 128, batch 2: Mini-JMamba']
    assert step['examples_per_second'] == pytest.approx(2000 / step['value'])
    assert rows['mod, d 128, batch 2: the audio alone']['value'] < step['value']


def test_a_config_of_ones_own(found):
    rows = found.rows
    label = f"{found.own}, d 64, batch 2: "
    assert rows[label + 'Mini-JMamba']['parameters'] < 1000000
    assert label + 'Transformer' not in rows  # mod alone has others beside it


def test_kernels_are_skipped_without_a_gpu(found):
    scan = found.rows['scan, 128 x 32 tokens: mamba_ssm kernel']
    step = found.rows['mod, d 128, batch 2: mamba_ssm.Mamba2']
    assert scan['skipped'] == step['skipped'] == "it needs an NVIDIA GPU"


def test_long_sound(found):
    rows = found.rows
    asked = [what for what in rows if what.startswith('answer to')]
    assert asked == [f"answer to {seconds} s of sound" for seconds in (1, 3, 10, 30)]
    assert rows['answer to 30 s of sound']['value'] > 2
    if sys.platform == 'linux':
        growth = rows['memory grows with length to the power of, from 10 s on']['value']
        assert 0.5 < growth < 1.5


def test_the_scorer_in_noise(found):
    rows = found.rows
    right = [rows[f"scorer, 10,000 symbols, {db} dB signal to noise"]['value']
             for db in ('inf', 10, 0, -5, -10)]
    assert right[:3] == [100, 100, 100]
    assert right[3] > 99 and right[4] > 90


def test_a_config_of_several_tasks_is_refused_in_one_line():
    text = bench('--configs=multitask', code=2)
    assert "one task, not 'multitask'" in text
    assert len(text.splitlines()) == 1

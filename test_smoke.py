"""
Everything once, the command line first.

$ python -m pytest test_smoke.py      # a minute on two CPU cores; run it before a commit

What takes longer, and every corner, is in tests/.
"""
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from audio.files import read_wav, write_wav
from prepare import play_text
from tasks import TASKS
from tests.helpers import (
    TRAIN,
    command,
    environment,
    files_in,
    is_png,
    output,
    path_of,
    refusal,
    rows_of,
    run,
    run_here,
)
from transcribe import transcribe


def heard_in(path):
    """What is played in a WAV file"""
    return transcribe(read_wav(str(path))[None])[0]


# --- the command line, in the order in which one meets it: first the weights that come along ---

def test_the_release_divides(tmp_path, capsys):
    text = run('sample.py', '--init_from=release', '--start=987%325%7', f'--sample_dir={tmp_path}')
    assert 'asked 987%325%7, wanted 5, heard 5: 987%325%7 -> 662%325%7 -> 337%325%7 -> ' in text
    assert {'000_question.wav', '000_pass_1.wav', '000_answer.png'} < set(files_in(tmp_path))
    answer = tmp_path / '000_answer.wav'
    assert heard_in(answer) == '5'
    table = output(capsys, 'score.py', answer, '--verbose=true').splitlines()
    assert (table[0], table[2].split()[0]) == ('5', '5')


def test_the_release_is_asked_and_its_answers_are_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = output(capsys, 'score.py', '--init_from=release', '--tasks=bracket', '--split=iid',
                  '--num_samples=4')
    assert 'bracket_iid_em: 1.0000' in text


@pytest.mark.parametrize('task, lengths', [
    ('mirror', [15, 15, 15, 20, 20, 40, 40]),
    ('twice', [15, 15, 15, 20, 20, 40, 40]),
])
def test_prepare_writes_a_data_set(task, lengths, tmp_path):
    assert run_here('prepare.py', f'--task={task}', '--split=ood_length', '--num_samples=7',
                    f'--out_dir={tmp_path}')[0] == 0
    folder = tmp_path / task / 'ood_length'
    rows = rows_of(folder / 'metadata.jsonl')
    assert sorted(len(row['question_symbols']) for row in rows) == lengths
    for row in rows:
        question = folder / row['question_file_name']
        assert heard_in(question) == row['question_symbols']
        assert heard_in(folder / row['answer_file_name']) == row['answer_symbols']
        assert row['answer_symbols'] == TASKS[task].solve(row['question_symbols'])
        assert len(read_wav(str(question))) == round(row['duration'] * 16000)


def test_puzzles_in_words(tmp_path):
    run('text.dataset', '--total_tokens=3K', f'--out_dir={tmp_path}')
    rows = rows_of(tmp_path / 'all' / 'train.jsonl')
    assert {'logic', 'dyna', 'filtro', 'inducto'} == {row['task'] for row in rows}


# --- then a model of one's own ---

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """What train.py printed about a tiny model of mirror, its folder, and its first checkpoint"""
    folder = tmp_path_factory.mktemp('out') / 'mirror'
    text = run('train.py', path_of('config/mirror.py'), *TRAIN, '--test_samples=3',
               f'--out_dir={folder}')
    checkpoint = torch.load(folder / 'ckpt.pt', weights_only=True)
    return SimpleNamespace(text=text, folder=folder, checkpoint=checkpoint)


def test_train_tests_itself_and_writes_samples(trained):
    assert 'validation exact match' in trained.text
    assert re.search(r'^mirror_iid_em: \d\.\d{4}$', trained.text, re.M)
    rows = rows_of(trained.folder / 'log.jsonl')[:5]
    assert [row['iter'] for row in rows] == [2, 3, 4, 6, 6]
    assert {'loss', 'frames', 'symbols', 'norm', 'lr', 'task'} <= set(rows[0])
    assert {'val', 'val_ood', 'level', 'odds'} <= set(rows[1])

    found = json.loads((trained.folder / 'scores.json').read_text())
    scores = found['scores']['mirror']
    assert set(scores) == set(TASKS['mirror'].splits) - {'train', 'val', 'val_ood'}
    assert scores['iid']['n'] == 3
    assert {'command', 'commit', 'torch', 'checkpoint', 'iterations'} <= set(found)
    samples = os.listdir(trained.folder / 'samples')
    assert sum(name.endswith('_answer.wav') for name in samples) == 4


def test_train_resumes(trained):
    text = run('train.py', path_of('config/mirror.py'), *TRAIN, '--max_iters=8',
               '--test_samples=0', '--init_from=resume', f'--out_dir={trained.folder}')
    assert 'trained 8 iterations' in text
    rows = rows_of(trained.folder / 'log.jsonl')
    assert [row['iter'] for row in rows] == [2, 3, 4, 6, 6, 8, 8]
    now = torch.load(trained.folder / 'ckpt.pt', weights_only=True)
    assert (trained.checkpoint['iter_num'], now['iter_num']) == (6, 8)
    before = trained.checkpoint['model']
    assert any(not torch.equal(now['model'][key], before[key]) for key in before)


def test_sample_plays_a_question_and_a_recording_of_it(trained, capsys):
    samples = trained.folder / 'mine'
    text = run('sample.py', f'--out_dir={trained.folder}', '--start=ABCA',
               f'--sample_dir={samples}')
    assert 'asked ABCA, wanted ABCA, heard' in text
    files = ['000_answer.png', '000_answer.wav', '000_question.png', '000_question.wav',
             'index.html']
    assert files_in(samples) == files
    assert heard_in(samples / '000_question.wav') == 'ABCA'
    page = (samples / 'index.html').read_text()
    for name in files[:-1]:
        assert f'src="{name}"' in page
    assert '<script' not in page

    text = output(capsys, 'sample.py', f'--out_dir={trained.folder}',
                  f"--wav={samples / '000_question.wav'}", f"--sample_dir={trained.folder / 'b'}")
    assert 'the scorer heard ABCA asked, and' in text
    text = output(capsys, 'sample.py', f'--out_dir={trained.folder}', '--start=ABBA',
                  f"--wav={samples / '000_question.wav'}", f"--sample_dir={trained.folder / 'b'}")
    assert 'asked ABBA, wanted ABBA, heard' in text
    table = output(capsys, 'score.py', samples / '000_question.wav', '--verbose=true')
    table = table.splitlines()
    assert table[0].endswith('ABCA')
    assert len(table) == 6
    assert [line.split()[0] for line in table[2:]] == list('ABCA')


def test_sample_answers_a_question_through_a_pipe_when_it_ends(trained, tmp_path):
    silence = torch.zeros(9600)
    write_wav(str(tmp_path / 'q.wav'), torch.cat([silence[:5000], play_text('ABBA'), silence]))
    data = bytearray((tmp_path / 'q.wav').read_bytes())
    # As a recorder writes the header, that does not know how long the sound will be
    data[4:8] = data[40:44] = b'\xff' * 4
    line = command('sample.py', f'--out_dir={trained.folder}', '--wav=-',
                   f"--sample_dir={tmp_path / 'samples'}")
    p = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    p.stdin.write(data)
    p.stdin.flush()  # and the pipe stays open
    assert b'the scorer heard ABBA asked' in p.stdout.readline()
    p.stdin.close()
    p.stdout.read()
    assert p.wait() == 0


def test_score_sorts_mistakes(trained):
    text = run('score.py', f'--out_dir={trained.folder}', '--num_samples=6', '--split=iid',
               '--errors=True')
    rows = rows_of(trained.folder / 'errors_iid.jsonl')
    exact = float(re.search(r'^mirror_iid_em: (.*)$', text, re.M)[1])
    wrong = round(6 * (1 - exact))
    assert len(rows) == wrong > 0
    assert re.search(rf'^mirror +iid +{wrong}  ', text, re.M)
    keys = {'task', 'split', 'asked', 'wanted', 'heard', 'kind', 'line', 'deletions'}
    assert keys <= set(rows[0])
    assert (rows[0]['task'], rows[0]['split']) == ('mirror', 'iid')
    assert heard_in(trained.folder / rows[0]['question']) == rows[0]['asked']
    assert heard_in(trained.folder / rows[0]['answer']) == rows[0]['heard']


def test_a_control_is_no_result(trained, capsys):
    before = (trained.folder / 'scores.json').read_bytes()
    text = output(capsys, 'score.py', path_of('config/control/noise.py'),
                  f'--out_dir={trained.folder}', '--num_samples=2')
    assert 'mirror_iid_em: 0.0000' in text
    assert (trained.folder / 'scores.json').read_bytes() == before


def test_figures(trained, tmp_path, capsys):
    question = next((trained.folder / 'samples').glob('*_question.wav'))
    run('lab.figures', question, f"--out={tmp_path / 'spectrogram.png'}")
    assert is_png(tmp_path / 'spectrogram.png')
    output(capsys, 'lab.figures', '--what=curves', trained.folder, f"--out={tmp_path / 'c.png'}")
    assert is_png(tmp_path / 'c.png')
    text = output(capsys, 'lab.figures', trained.folder, f"--out={tmp_path / 'table.png'}")
    assert re.search(r'^\| mirror \| 1 \| 3 \| ', text, re.M)
    assert is_png(tmp_path / 'table.png')


def test_a_look_inside(trained, tmp_path, capsys):
    output(capsys, 'lab.inside', 'pointer', trained.folder, f"--out={tmp_path / 'p.png'}")
    assert is_png(tmp_path / 'p.png')


def test_what_it_costs(tmp_path, capsys):
    text = output(capsys, 'lab.bench', '--parts=audio', '--repeats=1', '--device=cpu',
                  f"--out={tmp_path / 'bench.json'}")
    assert 'synthesis, one core' in text
    assert json.loads((tmp_path / 'bench.json').read_text())


def test_weights_travel(trained, tmp_path, capsys):
    path = tmp_path / 'w.safetensors'
    run('checkpoint.py', f'--out_dir={trained.folder}', f'--path={path}')
    text = output(capsys, 'sample.py', f'--init_from={path}', '--start=AB',
                  f"--sample_dir={tmp_path / 'samples'}")
    assert 'asked AB, wanted AB, heard' in text


def test_the_plan_of_asking_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = output(capsys, 'text.ask', '--model=wise', '--dry_run=true', '--samples=2')
    assert 'logic' in text
    assert not list(tmp_path.iterdir())


def test_the_numbers_of_the_readme_are_those_of_the_records():
    run('lab.results', '--check=true')


def test_one_letter_question_of_two_tasks(tmp_path, capsys):
    code, _ = run_here('train.py', '--tasks=mirror,reverse', *TRAIN, '--max_iters=2',
                       '--eval_samples=1', '--test_samples=0', f'--out_dir={tmp_path}')
    assert code == 0
    ask = [f'--out_dir={tmp_path}', '--start=ABCD']
    assert '--task=mirror' in refusal(capsys, 'sample.py', *ask)
    assert 'asked ABCD, wanted DCBA' in output(capsys, 'sample.py', *ask, '--task=reverse')
    assert 'mirror, reverse, not on mod' in refusal(capsys, 'sample.py', *ask, '--task=mod')


def test_the_lines_of_python_in_the_readme(tmp_path):
    with open(path_of('README.md')) as f:
        code = re.search(r'^```python\n(.*?)^```', f.read(), re.M | re.S)[1]
    p = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True,
                       env=environment())
    assert p.returncode == 0, p.stderr
    assert p.stdout.startswith("['662%325%7', '337%325%7', '12%325%7', '12%7', '5%7', '5'")
    assert heard_in(tmp_path / 'answer.wav') == '5'


# --- one mistake of each kind, and its sentence ---

def test_a_mistake_is_one_line_on_the_command_line():
    text = run('train.py', '--batchsize=3', code=2)
    assert text == "train.py: error: --batchsize=3: there is no setting 'batchsize'; did you " \
                   "mean 'batch_size'?\n"


@pytest.mark.parametrize('script, flags, says', [
    ('train.py', ['--batch_size=half'], "batch_size takes an integer, not 'half'"),
    ('train.py', ['config/nothing.py'], "cannot read the config file config/nothing.py"),
    ('train.py', ['--tasks=sing'], "tasks are some of mirror, mod, bracket, reverse, twice"),
    ('train.py', ['--head_dim=48'], "head_dim must divide 256"),
    ('prepare.py', ['--task=sing'], "there is no task 'sing'"),
    ('prepare.py', ['--split=far'], "mirror has no split 'far'; it has train, val"),
    ('prepare.py', ['--num_samples=0'], "num_samples must be at least 1, not 0"),
    ('sample.py', ['--out_dir=nowhere'], "there is no nowhere/ckpt.pt; train a model"),
    ('sample.py', ['--init_from=release', '--start=Az'], "'z' is not a symbol"),
    ('sample.py', ['--init_from=release', '--start=5A', '--task=mod'],
     "'5A' is not a question of mod"),
    ('score.py', ['nowhere.wav'], "nowhere.wav: there is no such file"),
    ('score.py', ['--sound=x'], "sound is clean or real or phase or noise or"),
    ('lab.figures', [], "name the WAV files, or the folders of runs, to draw"),
    ('lab.bench', ['--parts=lunch'], "parts are some of limits, audio"),
])
def test_a_mistake_gets_a_sentence(script, flags, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert says in refusal(capsys, script, *flags)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('script, key', [
    ('train.py', 'out_dir'),
    ('prepare.py', 'out_dir'),
    ('sample.py', 'sample_dir'),
])
def test_a_file_in_the_way_gets_a_sentence(script, key, tmp_path, capsys):
    (tmp_path / 'file').write_text('not a folder')
    flags = ['--init_from=release', '--start=A'] if script == 'sample.py' else []
    assert 'cannot write' in refusal(capsys, script, *flags, f"--{key}={tmp_path / 'file'}")

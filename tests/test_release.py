"""
The weights that come with the code: what README.md says of them.

$ python -m pytest tests/test_release.py
"""
import re

import pytest

from audio.files import read_wav, write_wav
from prepare import play_text
from tests.helpers import is_png, output


def release(capsys, script, *flags):
    return output(capsys, script, '--init_from=release', '--device=cpu', *flags)


def exact_match(capsys, tasks, num_samples, sound):
    """Ask iid questions of some tasks -> {task: exact match}, and what was printed"""
    text = release(capsys, 'score.py', '--split=iid', f'--tasks={tasks}', f'--sound={sound}',
                   f'--num_samples={num_samples}')
    asked = 'iid' if sound == 'clean' else re.escape(sound)
    found = re.findall(rf'^(\w+?)_{asked}_em: (\S+)$', text, re.M)
    exact = {task: float(share) for task, share in found}
    assert ','.join(exact) == tasks
    return exact, text


@pytest.mark.parametrize('tasks, n, least', [
    ('mirror,bracket,mod', 12, 0.8),
    pytest.param('mirror,bracket,mod', 67, 0.95, marks=pytest.mark.long),
])
@pytest.mark.parametrize('sound', [
    'phase',
    'noise',
    pytest.param('clean', marks=pytest.mark.long),
    pytest.param('longer', marks=pytest.mark.long),
    pytest.param('off_-45', marks=pytest.mark.long),
])
def test_accuracy_depends_on_the_tones_alone(sound, tasks, n, least, tmp_path, monkeypatch,
                                             capsys):
    monkeypatch.chdir(tmp_path)
    exact, text = exact_match(capsys, tasks, n, sound)
    for share in exact.values():
        assert share < 0.1 if sound == 'noise' else share >= least, text
    # What some of the tasks were asked does not pass for a test of all.
    assert not (tmp_path / 'out' / 'release' / 'scores.json').exists()


@pytest.mark.long
@pytest.mark.parametrize('sound', ['phase', 'noise'])
def test_puzzles_depend_on_the_tones_alone(sound, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exact, text = exact_match(capsys, 'logic,dyna,filtro,inducto', 20, sound)
    for share in exact.values():
        assert share < 0.1 if sound == 'noise' else share > 0.8, text


@pytest.mark.long
def test_a_window_may_end_with_the_last_tone(tmp_path, monkeypatch, capsys):
    """But in tasks that are answered behind the question"""
    monkeypatch.chdir(tmp_path)
    exact, text = exact_match(capsys, 'mirror,bracket,mod', 67, 'shorter')
    assert min(exact.values()) >= 0.95, text


@pytest.mark.parametrize('flags, says', [
    (['--start=987%325%7'],
     'heard 5: 987%325%7 -> 662%325%7 -> 337%325%7 -> 12%325%7 -> 12%7 -> 5%7 -> 5\n'),
    (['--start=(()())'], 'heard V'),
    (['--start=(()'], 'heard X'),
    (['--start=12%'], 'wanted X, heard X'),
    (['--start=0098'], 'wanted 0098, heard 0098'),
    (['--start=CABB'], 'asked CABB, wanted CABB, heard CABB\n'),
    (['--start=LKLK'], 'heard LKLK'),
    (['--start=FHKALL'], 'wanted FHKALL, heard FHKALL\n'),
    (['--start=' + 40 * 'CABE'], 'heard ' + 40 * 'CABE'),
    (['--start=((((()))))', '--think=2'], 'not finished'),
    (['--start=C1D0E1I&CDG&EIF^GC?F'], 'wanted 1, heard 1: C1D0E1I&CDG&EIF^GC?F -> '),
    (['--start=DJAGEn34^4&23?2'], 'wanted A, heard A: DJAGEn34^4&23?2 -> '),
    (['--start=B>E5>7E>F8>1?B2'], 'wanted F, heard F: B>E5>7E>F8>1?B2 -> '),
    (['--start=BDJH>BJ?IJA>IA?AJCG>'], 'wanted AC, heard AC\n'),
])
def test_what_is_asked_is_answered(flags, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert says in release(capsys, 'sample.py', *flags)
    assert (tmp_path / 'out' / 'release' / 'samples' / 'index.html').exists()


@pytest.mark.parametrize('number, wanted', [
    ('141421356237309504', 304),
    pytest.param('14142135623730950488016887242097', 222, marks=pytest.mark.long),
])
def test_a_long_number_is_divided(number, wanted, tmp_path, monkeypatch, capsys):
    """Of its many passes some are written, in order; the last is the answer."""
    monkeypatch.chdir(tmp_path)
    assert int(number) % 325 == wanted
    text = release(capsys, 'sample.py', f'--start={number}%325', '--think=1000')
    assert f'asked {number}%325, wanted {wanted}, heard {wanted}: {number}%325 -> ' in text
    assert text.count(' -> ') < 64 and f' -> {wanted}\n' in text
    samples = tmp_path / 'out' / 'release' / 'samples'
    assert len(list(samples.glob('*.wav'))) == text.count(' -> ') + 1


@pytest.mark.parametrize('gain', [0.002, 1])
def test_a_recording_is_answered_however_faint(gain, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_wav('recording.wav', gain * play_text('987%65%7'))
    text = release(capsys, 'sample.py', '--wav=recording.wav')
    assert 'the scorer heard 987%65%7 asked, and 5 answered' in text


@pytest.mark.parametrize('flag', ['--listen=false', '--listen=true'])
def test_an_answer_behind_the_question_is_heard_without_silence_there(flag, tmp_path, monkeypatch,
                                                                      capsys):
    monkeypatch.chdir(tmp_path)
    for seed, (asked, answer) in enumerate([('BDJH>BJ?IJA>IA?AJCG>', 'AC'),
                                            ('BDJH>HJDB?IJA>AJI?AJC>', 'CJA')]):
        write_wav('recording.wav', play_text(asked, seed))
        text = release(capsys, 'sample.py', '--wav=recording.wav', flag)
        assert re.search(rf'{re.escape(asked)} asked, and {answer} answered', text), text


def test_no_silence_is_played_behind_an_answer(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_wav('recording.wav', play_text('987%65%7'))
    assert 'and 5 answered' in release(capsys, 'sample.py', '--wav=recording.wav', '--listen=true')
    question, answer = (read_wav(f'out/release/samples/000_{name}.wav')
                        for name in ('question', 'answer'))
    assert len(answer) == len(question)


@pytest.mark.long
def test_the_depth_of_brackets_can_be_read_off_the_states(tmp_path, capsys):
    path = tmp_path / 'counting.png'
    text = output(capsys, 'lab.inside', 'counting', 'release', f'--out={path}',
                  '--num_samples=40')
    found = re.findall(r'^(\w+), length 40, has the depth been below 0\?: (.*) % right$', text,
                       re.M)
    right = {name: float(share) for name, share in found}
    assert right['trained'] >= 90 and right['trained'] > right['untrained'] + 5
    assert is_png(path) and path.stat().st_size > 9000

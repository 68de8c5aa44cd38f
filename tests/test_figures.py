"""
The pictures: tables of runs, and what a model makes of worse sound.

$ python -m pytest tests/test_figures.py
"""
import json

import pytest

from audio.files import write_wav
from lab import inside
from prepare import play_text
from tests.helpers import is_png, output, refusal, run_here, tiny_model

FIGURES = 'lab/figures.py'
INSIDE = 'lab/inside.py'


@pytest.fixture
def runs(tmp_path):
    """A folder of four runs that score.py has tested. One has another's name, one never thought."""
    for name, exact in (
        ('mod_s1', 1.0),
        ('mod_s2', 0.9),
        ('mod_direct', 0.5),
        ('old/mod_s1', 0.25),
    ):
        found = {'exact_match': exact, 'n': 20}
        contents = {'scores': {'mod': {'iid': found}}}
        if exact > 0.5:
            found['by_passes'] = {'1': 0.1, '2': 0.5, '4': exact}
            found['passes_by_lines'] = {'1': 1, '3': 2.9}
            contents['seconds'] = 60
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / 'scores.json').write_text(json.dumps(contents))
    return tmp_path


def test_a_table_of_runs_in_the_order_named_each_once(runs, capsys):
    names = ['old/mod_s1', 'mod_s1', 'mod_s2', 'mod_direct', 'mod_s1']
    picture = runs / 'table.png'
    text = output(capsys, FIGURES, *(runs / name for name in names), f'--out={picture}')
    assert '| old/mod | 1 | 20 | 25 |  |\n' \
           '| mod | 2 | 20 | 95 (90) | 60 |\n' \
           '| mod_direct | 1 | 20 | 50 |  |' in text
    assert is_png(picture)


def test_accuracy_by_passes(runs, capsys):
    picture = runs / 'passes.png'
    draw = ['--what=passes', f'--out={picture}']
    output(capsys, FIGURES, *draw, runs / 'mod_s1', runs / 'mod_s2')
    assert is_png(picture)
    assert 'name one run' in refusal(capsys, FIGURES, *draw, runs / 'mod_s1',
                                     runs / 'mod_direct')
    assert 'none of these was taught mod aloud' in refusal(capsys, FIGURES, *draw,
                                                           runs / 'mod_direct')


def test_a_run_without_scores_is_named(tmp_path, capsys):
    assert run_here(FIGURES, '--what=table', tmp_path / 'nothing')[0] == 2
    first, last = capsys.readouterr().err.splitlines()
    assert first == f"{tmp_path / 'nothing'} has no scores.json"
    assert last.endswith("none of these runs has a scores.json; score.py makes it")
    assert run_here(FIGURES, '--what=confusion', tmp_path / 'nothing')[0] == 2
    assert 'has no sounds.json' in capsys.readouterr().err


@pytest.mark.parametrize('damage, says', [
    ('{"scores": ', "is damaged: it is no JSON"),
    ('[]', "scores.json is missing or damaged"),
    ('{"scores": {"mod": {"iid": {"n": 20}}}}',
     "scores: mod: iid: exact_match is missing or damaged"),
    ('{"scores": {"mod": {"iid": {"exact_match": "all", "n": 20}}}}',
     "scores: mod: iid: exact_match is missing or damaged"),
    ('{"scores": {"song": {}}}', "asked nothing that is in tasks/"),
])
def test_what_is_damaged_is_named(damage, says, tmp_path, capsys):
    (tmp_path / 'scores.json').write_text(damage)
    assert says in refusal(capsys, FIGURES, tmp_path, f"--out={tmp_path / 't.png'}")


def test_accuracy_by_difficulty(tmp_path, capsys):
    levels = {level: {'accuracy': 0.9, 'total': 10} for level in ('1', '2', '3')}
    by_task = {task: {'by_difficulty': levels} for task in ('logic', 'dyna')}
    for seed in ('1', '2'):
        (tmp_path / seed).mkdir()
        contents = {'model': f'$a$_s{seed}', 'by_task': by_task}
        (tmp_path / seed / 'summary.json').write_text(json.dumps(contents))
    draw = ['--what=scaling', f"--out={tmp_path / 's.png'}", tmp_path / '1']
    output(capsys, FIGURES, *draw, tmp_path / '2' / 'summary.json')
    assert is_png(tmp_path / 's.png')
    assert 'has no summary.json' in refusal(capsys, FIGURES, *draw, tmp_path)


def test_spectrogram_of_several_sounds(tmp_path, capsys):
    for i, text in enumerate(('17%5', '2')):
        write_wav(str(tmp_path / f'00{i}_pass_{i}.wav'), play_text(text))
    picture = tmp_path / 's.png'
    output(capsys, FIGURES, *sorted(tmp_path.glob('*.wav')), f'--out={picture}')
    assert is_png(picture) and picture.stat().st_size > 9000


def test_the_pointer(tmp_path):
    inside.pointer(tiny_model(), str(tmp_path / 'p.png'))
    assert (tmp_path / 'p.png').stat().st_size > 9000
    with pytest.raises(ValueError, match='no pointer'):
        inside.pointer(tiny_model(pointer=False), str(tmp_path / 'p.png'))


def test_curves_of_a_run(trained, tmp_path, capsys):
    picture = tmp_path / 'c.png'
    output(capsys, FIGURES, '--what=curves', trained, f'--out={picture}')
    assert is_png(picture) and picture.stat().st_size > 9000
    assert 'has no log.jsonl' in refusal(capsys, FIGURES, '--what=curves', tmp_path)


@pytest.mark.parametrize('what, file, tests', [
    ('robustness', 'sounds', ['clean', 'white_0', 'white_-5', 'tempo_0.5', 'a_new_one']),
    ('lengths', 'lengths', ['20', '10', '160']),
])
def test_where_it_breaks(what, file, tests, tmp_path, capsys):
    scores = {'mod': {test: {'exact_match': 0.5, 'n': 8} for test in tests}}
    (tmp_path / f'{file}.json').write_text(json.dumps({'scores': scores}))
    picture = tmp_path / f'{what}.png'
    output(capsys, FIGURES, f'--what={what}', tmp_path, f'--out={picture}')
    assert is_png(picture) and picture.stat().st_size > 9000


def test_lengths_are_asked_and_drawn(trained, tmp_path, capsys):
    few = [f'--out_dir={trained}', '--num_samples=1', '--think=1']
    assert 'mirror   10 ' in output(capsys, 'score.py', *few, '--split=lengths')
    assert (trained / 'lengths.json').exists()
    picture = tmp_path / 'lengths.png'
    output(capsys, FIGURES, '--what=lengths', trained, f'--out={picture}')
    assert is_png(picture)


@pytest.mark.long
def test_worse_sound_and_longer_questions_are_asked_and_drawn(trained, tmp_path, capsys):
    few = [f'--out_dir={trained}', '--num_samples=1']
    text = output(capsys, 'score.py', *few, '--sound=all')
    asked = [line.split()[1] for line in text.splitlines() if line.startswith('mirror   ')]
    assert len(asked) > 60
    kinds = {sound.split('_')[0] for sound in asked}
    assert {'white', 'echo', 'tempo', 'off', 'sawtooth', 'clicks'} <= kinds
    assert 'mirror   10 ' in output(capsys, 'score.py', *few, '--split=lengths')
    for what in ('robustness', 'lengths'):
        picture = tmp_path / f'{what}.png'
        output(capsys, FIGURES, f'--what={what}', trained, f'--out={picture}')
        assert is_png(picture) and picture.stat().st_size > 9000


def test_which_tones_are_heard_for_which(tmp_path, capsys):
    draw = ['--what=confusion', f"--out={tmp_path / 'c.png'}", tmp_path]
    for confused, refused in (({'AB': 3, '0?': 1}, False), ({}, True)):
        found = {'exact_match': 0.5, 'n': 8, 'confused': confused}
        contents = {'scores': {'mirror': {'white_0': found}}}
        (tmp_path / 'sounds.json').write_text(json.dumps(contents))
        if refused:
            assert 'in none of their answers' in refusal(capsys, FIGURES, *draw)
        else:
            output(capsys, FIGURES, *draw)
    assert is_png(tmp_path / 'c.png')


def test_inside_a_model(trained, tmp_path, capsys):
    picture = tmp_path / 'p.png'
    output(capsys, INSIDE, 'pointer', trained, f'--out={picture}')
    assert is_png(picture)
    said = refusal(capsys, INSIDE, 'counting', trained)
    assert 'is for a model of bracket, not of mirror' in said
    assert 'name what to draw' in refusal(capsys, INSIDE, trained)


@pytest.mark.parametrize('what, says', [
    ('beauty', 'what is spectrogram or table or curves or passes or lengths or robustness or'),
    ('spectrogram', 'cannot be read'),
])
def test_what_cannot_be_drawn(what, says, trained, capsys):
    assert says in refusal(capsys, FIGURES, f'--what={what}', trained)

"""
Every number that README.md or RESULTS.md gives as a result is in a record, or names its commit.
"""
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from lab import results
from tests.helpers import ROOT, is_one_line

# A number that a person types counts or measures something: one of these words stands behind it.
# Any other is a result, and a result comes from a record: {release/mod/iid:score}.
UNITS = set(
    's ms Hz kHz dB GPU H100 second seconds minute minutes hours passes lines slots symbols '
    'letters brackets digits bits gates operations steps edges examples questions frames layers '
    'cores million'.split())
NUMBER = re.compile(r'(?<![\w.,/-])\d[\d.,]*(?: to \d[\d.,]*)?(?: ?%)?(?: of \d[\d,]*)?')


def plain(text):
    """A page without what no person types as a result: blocks of code, names of things, links"""
    text = re.sub(r'```.*?```', ' ', text, flags=re.DOTALL)
    text = re.sub(r'<!-- records: \S+ -->.*?<!-- end -->', ' ', text, flags=re.DOTALL)
    text = re.sub(r'`[^`]*`|\{[^}]*\}|\]\([^)]*\)|arXiv:\S+|95 % interval', ' x ', text)
    return re.sub(r'\b(?:19|20)\d\d\b|^\d+\. ', ' ', text, flags=re.MULTILINE)


def typed(text):
    """Results that somebody has typed into a text, and not taken from a record"""
    text = plain(text)
    found = []
    for number in NUMBER.finditer(text):
        unit = re.match(r'\W*(\w*)', text[number.end():])[1]
        if '%' in number[0] or ' of ' in number[0] or unit not in UNITS:
            found.append(number[0].strip(' .,'))
    return found


def read(*path):
    with open(os.path.join(ROOT, *path), encoding='utf-8') as f:
        return f.read()


# --- the pages as they are ---

def test_the_pages_say_what_the_records_say():
    for path, (old, new) in results.written(ROOT).items():
        assert old == new, f"{path}: python -m lab.results"


def test_no_result_is_typed_into_the_readme():
    names = [name for name in os.listdir(os.path.join(ROOT, 'records')) if name.endswith('.md')]
    assert names
    for path in (['README.md'], *[['records', name] for name in names]):
        assert typed(read(*path)) == [], path


def test_the_task_of_the_readme_is_that_of_tasks():
    task = re.search(r'^```py\n(.*?)^```', read('README.md'), re.M | re.S)[1]
    assert task in read('tasks', 'README.md')


def test_a_result_in_the_other_tables_names_the_commit_that_has_it():
    sections = re.split('^## ', read('RESULTS.md'), flags=re.MULTILINE)[1:]
    assert len(sections) > 5
    for section in sections:
        if re.search(r'\d', plain(section.partition('\n')[2])):
            assert re.search(r'\b[0-9a-f]{7}\b', section), section.partition('\n')[0]


def test_every_commit_that_a_page_names_is_one():
    pages = ' '.join(read(page) for page in ('README.md', 'RESULTS.md', 'LOG.md'))
    named = sorted(set(re.findall(r'\b(?=\d*[a-f])(?=[a-f]*\d)[0-9a-f]{7}\b', pages)))
    assert len(named) > 20
    p = subprocess.run(['git', '-C', ROOT, 'cat-file', '--batch-check=%(objecttype)'],
                       input='\n'.join(named), capture_output=True, text=True)
    if p.returncode or os.path.exists(os.path.join(ROOT, '.git', 'shallow')):
        pytest.skip("this copy has no history")
    kinds = dict(zip(named, p.stdout.splitlines(), strict=True))
    assert [name for name in named if kinds[name] != 'commit'] == []


# --- the rule can fail ---

@pytest.mark.parametrize('text, found', [
    ('It is right in 99.5 % of them.', ['99.5 %']),
    ('right in 126 of 128 with 100 digits', ['126 of 128']),
    ('| mod | 100 with 20 digits | noise of 5 dB: 92 |', ['100', '92']),
    ('99.8 on two tones that were never trained', ['99.8']),
    ('It has 1.5 million parameters; a tone is 100 ms, 100 Hz apart.', []),
    ('3 to 10 letters, A of up to 6 digits, an echo of 0.8 s, `17%5`, (Dao and Gu 2024)', []),
    ('in {release/mod/100:count} with 100 digits', []),
])
def test_a_typed_result_is_found(text, found):
    assert typed(text) == found


# --- a record and its page, made up ---

TEMPLATE = """\
| task | right | 95 % | questions | wire | shortcut |
| --- | --- | --- | --- | --- | --- |
| 20 digits | {made-up/mod/20} |
| echo | {made-up/mirror/echo_0.8} |

Right in {made-up/mod/20:count}, which is {made-up/mod/20:score} %.
"""
FILLED = """\
| task | right | 95 % | questions | wire | shortcut |
| --- | --- | --- | --- | --- | --- |
| 20 digits | 90 | 82.6 to 94.5 | 100 | 2 | 61 |
| echo | 99.5 | 98.8 to 99.8 | 1,000 | 100 |  |

Right in 90 of 100, which is 90 %.
"""
PAGE = 'before\n<!-- records: table -->\n{}<!-- end -->\nbehind\n'


def made(test, exact, n, **more):
    return {test: {'exact_match': exact, 'n': n, 'confused': {'AB': 3}, **more}}


@pytest.fixture
def root(tmp_path):
    """A folder with a page and a record of two kinds"""
    out = tmp_path / 'out'
    out.mkdir()
    digits = made('20', 0.9, 100, wire=0.02, shortcuts={'the last': 0.3, 'the first': 0.61})
    echo = made('echo_0.8', 0.995, 1000, wire=1.0, shortcuts={})
    run_of = {'command': 'score.py --seed=3', 'commit': '0123abc', 'seed': 3}
    for kind, scores in (('lengths', {'mod': digits}), ('sounds', {'mirror': echo})):
        (out / f'{kind}.json').write_text(json.dumps({'scores': scores, **run_of}))
    results.add_record(tmp_path / 'records' / 'made-up', out, 'a machine')
    (tmp_path / 'records' / 'table.md').write_text(TEMPLATE)
    for page in results.PAGES:
        (tmp_path / page).write_text(PAGE.format(''))
    return tmp_path


def test_a_record_says_what_made_it(root):
    record = root / 'records' / 'made-up'
    about = json.loads((record / 'record.json').read_text())
    assert about['lengths.json'] == {
        'command': 'score.py --seed=3', 'commit': '0123abc', 'seed': 3, 'machine': 'a machine'}
    assert set(about) == {'lengths.json', 'sounds.json'}
    assert 'confused' not in (record / 'lengths.json').read_text()


def test_of_two_tests_the_longer_counts(root):
    record, name = root / 'records' / 'made-up', 'made-up/mod/20'
    for n, counts in ((50, 100), (400, 400)):
        scores = {'mod': made('20', 0.5, n, wire=0, shortcuts={})}
        (record / 'scores_mod_length_20.json').write_text(json.dumps(scores))
        assert results.read_records(root / 'records')[name]['n'] == counts
    (record / 'scores_mod_length_20.json').write_text(
        json.dumps({'mod': made('20', 0.5, 100, wire=0, shortcuts={})}))
    with pytest.raises(ValueError, match=name):
        results.read_records(root / 'records')


def test_pages_are_written_once_and_then_stay(root, capsys):
    results.update(root, check=False)
    assert (root / 'README.md').read_text() == PAGE.format(FILLED)
    capsys.readouterr()
    results.update(root, check=False)
    results.update(root, check=True)
    assert capsys.readouterr().out == ''


def test_a_number_that_was_changed_is_found(root, capsys):
    results.update(root, check=False)
    (root / 'README.md').write_text(PAGE.format(FILLED.replace('99.5', '99.9')))
    with pytest.raises(SystemExit) as end:
        results.update(root, check=True)
    assert end.value.code == 1
    assert '-| echo | 99.9 |' in capsys.readouterr().out


@pytest.mark.parametrize('page, template, says', [
    (PAGE, '{made-up/mod/40}', 'made-up/mod/40'),
    (PAGE, '{made-up/mod/20:shown}', 'made-up/mod/20:shown'),
    (PAGE.replace('table', 'other'), TEMPLATE, 'other.md'),
    (PAGE.replace('<!-- end -->', ''), TEMPLATE, 'end'),
])
def test_what_no_record_has_is_not_written(root, page, template, says):
    (root / 'records' / 'table.md').write_text(template)
    (root / 'RESULTS.md').write_text(page.format('99.9'))
    with pytest.raises(ValueError, match=says):
        results.update(root, check=False)
    assert (root / 'README.md').read_text() == PAGE.format('')


@pytest.mark.parametrize('commit', ['unknown', '0123abc-dirty'])
def test_a_run_that_nobody_can_make_again_is_no_record(root, commit):
    path = root / 'out' / 'sounds.json'
    path.write_text(json.dumps({'scores': {}, 'commit': commit}))
    with pytest.raises(ValueError, match=commit):
        results.add_record(root / 'records' / 'new', root / 'out')
    assert not (root / 'records' / 'new').exists()
    results.add_record(root / 'records' / 'new', root / 'out', commit='4567def')
    shutil.rmtree(root / 'out')
    with pytest.raises(ValueError, match='score.py'):
        results.add_record(root / 'records' / 'new', root / 'out')


def test_wilson():
    assert results.wilson(10, 10) == pytest.approx((0.7225, 1), abs=1e-4)
    assert results.wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert results.wilson(995, 1000) == pytest.approx((0.9883, 0.9979), abs=1e-4)


def test_help_and_a_mistake():
    command = [sys.executable, '-m', 'lab.results']
    p = subprocess.run([*command, '--help'], cwd=ROOT, capture_output=True, text=True)
    assert p.returncode == 0 and '--check=False' in p.stdout
    p = subprocess.run([*command, '--add=new'], cwd=ROOT, capture_output=True, text=True)
    assert p.returncode == 2 and is_one_line(p.stderr) and '--of=' in p.stderr

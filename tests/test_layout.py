"""
The layout: which files there are, which loads which, and how the code reads.

$ python -m pytest tests/test_layout.py
"""
import json
import re
import subprocess
import sys

import pytest

from lab import readability
from tests.helpers import ROOT, TRAIN, environment, path_of, run, source_of

# In this order: a file imports only what stands before it, tasks/ and audio/files.
ORDER = ['configurator', 'system', 'prepare', 'model', 'checkpoint', 'transcribe', 'think', 'exam',
         'lessons', 'optimizer', 'train', 'score', 'sample']
PACKAGES = {'tasks', 'fast', 'audio', 'lab', 'text', 'page'}
BESIDE = {'config', 'records', 'tests', 'assets', '.ci', '.gitignore', 'test_smoke.py', 'README.md',
          'RESULTS.md', 'LOG.md', 'LICENSE', 'CITATION.cff', 'pyproject.toml', 'requirements.txt',
          'requirements-gpu.txt'}


def tracked():
    """The files that git tracks"""
    listed = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no clone of the repository")
    return listed.stdout.split('\0')[:-1]


def read(path):
    with open(path_of(path), encoding='utf-8') as f:
        return f.read()


# --- which files there are ---

def test_the_top_level_has_the_files_of_the_layout_and_no_others():
    there = {path.partition('/')[0] for path in tracked()}
    assert there == BESIDE | PACKAGES | {name + '.py' for name in ORDER}


def test_the_readme_lists_the_files_in_the_order_in_which_they_are_read():
    table = read('README.md').partition('\n## Files\n')[2].partition('\n## ')[0]
    cells = ' '.join(re.findall(r'^\| (`.*?) \|', table, re.M))
    names = re.findall(r'`(\w+)(?:\.py|/)`', cells)
    assert [name for name in names if name in ORDER] == ORDER
    assert set(names) == {*ORDER, *PACKAGES, 'config', 'records', 'test_smoke', 'tests'}


def test_the_bounds_hold():
    run('lab.readability', '--check=true')


# --- which loads which ---

OURS = '''
import importlib, json, os, runpy, sys

def ours():
    files = {n: getattr(m, '__file__', None) or '' for n, m in sys.modules.items()}
    return {n for n, f in files.items() if f.startswith(sys.path[0]) and n != '__main__'}

sys.path.insert(0, ROOT + os.sep)
'''


def loaded(code):
    """Run code that prints JSON, which may ask which modules of ours() are loaded -> that"""
    p = subprocess.run([sys.executable, '-c', OURS.replace('ROOT', repr(ROOT)) + code],
                       capture_output=True, text=True, env=environment())
    assert p.returncode == 0, p.stderr
    return json.loads(p.stdout.splitlines()[-1])


def test_a_file_loads_only_what_stands_before_it():
    code = '''
new = {}
for name in ORDER:
    before = ours()
    importlib.import_module(name)
    new[name] = sorted(ours() - before)
print(json.dumps(new))
'''
    names = [name for name in ORDER if name != 'train']  # it trains
    new = loaded(code.replace('ORDER', repr(names)))
    # What a file has loaded that no file before it had: itself, and these.
    may_load = {name: r'tasks|tasks\.\w+|audio|audio\.files' for name in names}
    may_load.update(dict.fromkeys(('score', 'sample'), r'(tasks|audio|fast|lab|text)(\.\w+)?'))
    for name, modules in new.items():
        wrong = [m for m in modules if m != name and not re.fullmatch(may_load[name], m)]
        assert not wrong, f"{name}.py loads {wrong}"


def test_the_model_imports_nothing_of_ours(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert not readability.imports_of('model.py', set(tracked()))


def test_training_loads_nothing_that_a_reader_can_skip(tmp_path):
    flags = [*TRAIN, '--max_iters=1', '--eval_samples=1', '--test_samples=0',
             f'--out_dir={tmp_path}']
    code = f'''
sys.argv = ['train.py', {path_of('config/mirror.py')!r}, *{flags!r}]
runpy.run_path({path_of('train.py')!r}, run_name='__main__')
print(json.dumps(sorted(ours())))
'''
    modules = loaded(code)
    assert {'configurator', 'model', 'lessons', 'exam', 'think', 'tasks.mirror'} <= set(modules)
    assert not [m for m in modules if re.match(r'(lab|text|page|score|sample)\b', m)]
    assert 'fast.kernels' not in modules  # Triton takes a second to load, and a CPU needs none


@pytest.mark.parametrize('graph, says', [
    ({'model.py': {'prepare.py'}, 'prepare.py': set()}, ''),
    ({'prepare.py': {'model.py'}, 'model.py': set()},
     "prepare.py imports model.py, which does not stand before it"),
    ({'exam.py': {'lab/mistakes.py'}, 'lab/mistakes.py': set()},
     "exam.py imports lab/mistakes.py, which does not stand before it"),
    ({'score.py': {'lab/mistakes.py'}, 'lab/mistakes.py': set()}, ''),
    ({'think.py': {'audio/tune.py'}, 'audio/tune.py': set()},
     "think.py imports audio/tune.py, which does not stand before it"),
    ({'fast/kernels.py': {'lab/bench.py'}, 'lab/bench.py': set()},
     "fast/kernels.py imports lab/bench.py, but fast/ does without lab/"),
    ({'helpers.py': set()}, "helpers.py stands at the top level"),
    ({'lab/a.py': {'lab/b.py'}, 'lab/b.py': {'lab/a.py'}}, "go round in a circle"),
])
def test_an_import_in_the_wrong_direction_is_named(graph, says):
    found = readability.misplaced(graph)
    assert len(found) == bool(says)
    assert says in ''.join(found)


def test_an_import_is_seen_wherever_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a.py').write_text('''
import b
def f():
    from lab import c
    import tasks.d as d
if __name__ == '__main__':
    import e
''')
    files = {'a.py', 'b.py', 'lab/c.py', 'lab/__init__.py', 'tasks/d.py', 'e.py', 'f.py'}
    assert readability.imports_of('a.py', files) == {'b.py', 'lab/c.py', 'lab/__init__.py',
                                                     'tasks/d.py'}


def test_code_is_counted_and_each_bound_can_be_broken(tmp_path):
    path = tmp_path / 'a.py'
    dense = f'x = [{", ".join("1" * 20)}]\n'  # 43 tokens
    path.write_text(f'"""\nNo code.\n"""\n# nor this\n\nx = 1  # three tokens\n{dense}'
                    'f = lambda: 0\n\n\ndef g():\n' + 60 * '    a = 1\n')
    n = readability.count(str(path))
    assert (n.lines, n.code, n.comments, n.dense, n.lambdas, n.wide) == (71, 64, 1, 1, 1, 0)
    assert n.tokens == 3 + 43 + 5 + 5 + 60 * 3
    assert n.longest == 61
    said = readability.over_each('model.py', n)
    for words in 'lines of comment', 'a function of 61 lines', 'binds 1 lambdas':
        assert words in ' '.join(said)
    assert len(said) == 3
    path.write_text(dense + '# ' + 99 * 'a')
    said = readability.over_each('model.py', readability.count(str(path)))
    assert ' '.join(said).count('model.py has') == 2  # tokens, and a wide line
    assert len(readability.over_all(n, 3701, 3201, 1301, 161)) == 5
    assert readability.readme('# a b\n| c d |\n```\ne f\n```\ng') == (4, 7)


# --- what stands in two places ---

def blocks_of(path):
    """The blocks of Python in a page"""
    return re.findall(r'^```py\n(.*?)^```$', read(path), re.M | re.S)


def test_the_task_in_the_readme_is_that_of_the_tasks_readme():
    example, *_ = blocks_of('README.md')
    assert example in blocks_of('tasks/README.md')
    assert 'next_line' in example


def test_the_registry_in_the_readme_is_the_registry():
    """A task of one's own may come behind."""
    registry = next(block for block in blocks_of('README.md') if 'TASKS = ' in block)
    shown, there = (re.findall(r'(\w+)\.task,', text)
                    for text in (registry, read('tasks/__init__.py')))
    assert len(shown) >= 10 and there[:len(shown)] == shown
    imported = re.findall(r'^    (\w+),$', registry, re.M)
    assert set(imported) == set(shown)


def test_the_test_command_in_the_readme_is_what_ci_runs():
    commands = re.findall(r'^.*python -m pytest.*$', read('README.md'), re.M)
    assert len(commands) == 1 and commands[0].endswith(' && python -m pytest -q -n 2')
    assert "grep -m1 'python -m pytest' README.md" in read('.ci/run')


# --- what is of no use to a reader ---

def test_no_page_and_no_code_names_a_place_on_a_machine():
    place = re.compile(r'(?<![\w.\])}*])/(?:work|opt|root|home|tmp|Users)/\w')
    for path in tracked():
        if path.endswith(('.py', '.md', '.js', '.html', '.toml', '.txt', '.json', '.cff', 'run')):
            found = place.search(read(path))
            assert not found, f"{path}: {found[0]}"


def test_source_of_a_program_is_found():
    assert source_of('lab.figures').startswith('"""\nEvery picture.')

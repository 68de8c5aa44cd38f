"""
Asking models behind an API: a stub that knows all and fails in every way.

$ python -m pytest tests/test_ask.py
"""
import base64
import io
import json
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from audio.files import read_wav
from tasks import TASKS
from tests.helpers import ROOT, is_png, output, refusal, rows_of, run_here
from tests.test_words import solved
from text import ask as text_ask
from text import words
from transcribe import transcribe


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """A reader that has gone, perhaps in an earlier test, is no error of this one."""


class Server(BaseHTTPRequestHandler):
    """An API that answers rightly, unless it is told to fail: trouble is a list of what goes wrong
    with the next requests"""
    trouble, asked, lock = [], [], threading.Lock()
    protocol_version = 'HTTP/1.1'

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        with self.lock:
            self.asked.append((self.path, body, self.headers.get('Authorization')))
            wrong = self.trouble.pop(0) if self.trouble else ''
        if wrong.isdigit():
            return self.answer(int(wrong), b'{"error": "no"}')
        if wrong.startswith('json '):
            return self.answer(200, wrong[5:].encode())
        if wrong in ('late', 'slow'):
            time.sleep(1.5 if wrong == 'late' else 0.2)
        if wrong == 'half':
            self.send_response(200)
            self.send_header('Content-Length', '500')
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.close_connection = True
            return
        if wrong == 'no json':
            return self.answer(200, b'<html>busy</html>')
        if wrong == 'empty':
            return self.answer(200, b'{"choices": []}')
        content = body['messages'][0]['content']
        message = {'content': said(content, wrong)}
        if wrong == 'reasoning':
            message = {'content': '', 'reasoning': said(content, '')}
        usage = {'prompt_tokens': 10, 'completion_tokens': 5}
        self.answer(200, json.dumps({'choices': [{'message': message}], 'usage': usage}).encode())

    def answer(self, code, data):
        self.send_response(code)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


def said(content, how):
    """What a model that knows all says"""
    if isinstance(content, list):  # it hears
        wave = read_wav(io.BytesIO(base64.b64decode(content[0]['input_audio']['data'])))
        text = transcribe(wave[None])[0]
        task = next(t for t in words.PUZZLES if is_question(t, text))
        return f'ANSWER: {TASKS[task].solve(text)}'
    text = content.split('\n\n')[-1]
    answer = solved(text)
    if how == 'thinking':
        return f'<think>ANSWER: no, perhaps\nANSWER: not</think>It is so.\n**ANSWER: {answer}**'
    if how == 'bare':
        return f'Let me see.\n{answer}.'
    return f'So it is.\nANSWER: {answer}'


def is_question(task, text):
    try:
        return bool(TASKS[task].solve(text))
    except ValueError:
        return False


@pytest.fixture
def server():
    Server.trouble, Server.asked = [], []
    one = QuietServer(('127.0.0.1', 0), Server)
    threading.Thread(target=one.serve_forever, args=(0.01,), daemon=True).start()
    yield f'http://127.0.0.1:{one.server_port}/v1'
    one.shutdown()


@pytest.fixture
def ask(server, tmp_path, capsys, monkeypatch):
    """Run text.ask on the server -> exit code, and what it printed"""
    pytest.importorskip('httpx')
    monkeypatch.setenv('OPENAI_API_KEY', 'sk-secret')

    def run(*flags):
        code, _ = run_here('text/ask.py', f'--base_url={server}', '--model=wise', '--samples=5',
                           '--requests_per_minute=100000', '--backoff=0.01', '--timeout=1',
                           f'--out_dir={tmp_path}', *flags)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


WITHOUT_INDUCTO = '--tasks=dyna,filtro,logic'


def test_a_model_is_asked_and_graded(ask, tmp_path):
    code, text = ask(WITHOUT_INDUCTO)
    assert code == 0 and 'Total: 45/45 correct (100.0%)' in text
    rows = rows_of(tmp_path / 'results.jsonl')
    assert len({row['sample_id'] for row in rows}) == len(rows) == 45
    assert all(row['is_correct'] and row['extracted_answer'] for row in rows)
    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert summary['by_task']['dyna']['by_difficulty']['3'] == {
        'total': 5, 'correct': 5, 'accuracy': 1.0}
    assert summary['tokens'] == {'prompt_tokens': 450, 'completion_tokens': 225}
    assert summary['timing']['p50_latency_ms'] <= summary['timing']['p95_latency_ms']
    state = json.loads((tmp_path / 'state.json').read_text())
    assert set(state['completed']) == {row['sample_id'] for row in rows}
    assert all(key == 'Bearer sk-secret' for _, _, key in Server.asked)
    for path in tmp_path.iterdir():
        assert 'sk-secret' not in path.read_text()


@pytest.mark.parametrize('trouble', ['429', '500', '503', 'half', 'no json', 'empty', 'late'])
def test_what_fails_is_asked_again(trouble, ask, tmp_path):
    Server.trouble = [trouble, trouble]
    code, text = ask('--tasks=logic', '--difficulties=1', '--max_concurrent=1')
    assert code == 0 and 'Total: 5/5 correct' in text
    assert len(Server.asked) == 7


@pytest.mark.parametrize('how', ['thinking', 'bare', 'reasoning'])
def test_answers_are_found(how, ask):
    Server.trouble = [how] * 5
    code, text = ask('--tasks=filtro', '--difficulties=2')
    assert code == 0 and 'Total: 5/5 correct' in text


def test_what_is_never_answered_is_told_and_asked_again_next_time(ask, tmp_path):
    Server.trouble = ['500'] * 6
    flags = ['--tasks=logic', '--difficulties=1', '--max_concurrent=1', '--retries=2']
    code, text = ask(*flags)
    assert code == 1 and '2 questions are left' in text and 'Not answered: 2 x 500' in text
    asked = len(Server.asked)
    code, text = ask(*flags)
    assert code == 0 and '3 of them have been answered before' in text
    assert len(Server.asked) == asked + 2
    rows = rows_of(tmp_path / 'results.jsonl')
    assert len({row['sample_id'] for row in rows}) == len(rows) == 5


def test_a_run_that_was_killed_goes_on(ask, tmp_path):
    flags = ['--tasks=logic', '--difficulties=1']
    ask(*flags)
    lines = (tmp_path / 'results.jsonl').read_text().splitlines(True)
    (tmp_path / 'results.jsonl').write_text(''.join(lines[:3]) + lines[3][:40])
    (tmp_path / 'state.json').unlink()
    Server.asked.clear()
    code, _ = ask(*flags)
    assert code == 0 and len(Server.asked) == 2
    assert sorted(map(json.dumps, rows_of(tmp_path / 'results.jsonl'))) != lines
    assert len(rows_of(tmp_path / 'results.jsonl')) == 5


@pytest.mark.parametrize('status', ['401', '402', '308'])
def test_a_server_that_refuses_ends_it_with_a_sentence(status, ask, tmp_path):
    Server.trouble = [status] * 100
    code, text = ask('--tasks=logic', '--samples=30')
    assert code == 1 and f'refuses: {status}' in text and 'Traceback' not in text
    assert '"error": "no"' in text  # what the server says
    assert len(Server.asked) < 90


@pytest.mark.parametrize('odd', [
    {'choices': [{'message': {'content': [{'type': 'text', 'text': 'ANSWER: 1'}]}}]},
    {'choices': [{'message': {'content': {'text': 1}}}]},
    {'choices': [{'message': {'content': 'ANSWER: 1'}}], 'usage': {'prompt_tokens': 'many'}},
    {'choices': [{'message': {'content': 5}}], 'usage': []},
    [[]],
])
def test_odd_answers_end_no_run(odd, ask, tmp_path):
    Server.trouble = ['json ' + json.dumps(odd)] * 2
    code, text = ask('--tasks=logic', '--difficulties=1', '--max_concurrent=1', '--retries=3')
    assert code == 0 and 'Total: ' in text and 'Traceback' not in text


def test_what_was_not_answered_does_not_count_as_wrong(ask, tmp_path):
    Server.trouble = ['500', '', '500']
    code, text = ask('--tasks=logic', '--difficulties=1', '--max_concurrent=1', '--retries=0')
    assert code == 1 and 'Total: 3/3 correct (100.0%)' in text
    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert summary['unanswered'] == 2 and sum(summary['errors'].values()) == 2


def test_one_run_at_a_time_uses_a_folder(ask, tmp_path):
    fcntl = pytest.importorskip('fcntl')
    with open(tmp_path / '.jericho', 'w') as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, text = ask('--tasks=logic')
    assert code == 1 and 'another run writes to' in text and not Server.asked


@pytest.mark.parametrize('key', ['sk-\u00e9', 'sk-a\nb'])
def test_a_key_that_is_none_is_not_told(key, ask, tmp_path, monkeypatch):
    monkeypatch.setenv('OPENAI_API_KEY', key)
    code, text = ask('--tasks=logic')
    assert code == 2 and 'holds is no key' in text and key not in text


@pytest.mark.parametrize('task, target, right, wrong', [
    ('dyna', '3', ['3', '**3**', 'position 3', r'$\boxed{3}$', '3 (zero-based)', 'A is at 3', '3.'],
     ['-3', '13', '3.5', '4', '']),
    ('dyna', 'B', ['B', 'element B', 'b', 'position 0: B', r'\text{B}'], ['A', 'BC']),
    ('logic', '1', ['1', 'true', '1 (true)', 'g12 = 1'], ['0', '~0', '!1', 'false']),
    ('filtro', 'gamma', ['gamma', 'A:gamma', 'a: gamma', 'alpha -> beta -> gamma', 'node gamma'],
     ['alpha', 'A:alpha', '']),
    ('inducto', '[A B C]', ['[A B C]', 'A, B, and C', "['A', 'B', 'C']", 'ABC', 'A B C (turned)',
                            'Query: [X Y] -> [A B C]'], ['A B', 'C B A', 'A:B C D']),
])
def test_answers_are_graded_in_any_sensible_form(task, target, right, wrong):
    for text in right:
        for said in (f'So.\nANSWER: {text}', f'ANSWER: no\n**Answer:** {text}', f'ANSWER:\n{text}'):
            assert text_ask.is_right(text_ask.answer_in(said), target, task), said
    for text in wrong:
        said = text_ask.answer_in(f'ANSWER: {text}')
        assert not text_ask.is_right(said, target, task), text


def test_other_questions_are_not_mixed_in(ask):
    assert ask('--tasks=logic', '--difficulties=1')[0] == 0
    code, text = ask('--tasks=logic', '--difficulties=1', '--seed=2')
    assert code == 1 and 'give another --out_dir' in text


@pytest.mark.parametrize('flags', [[], ['--audio=true']])
def test_what_is_played_is_asked_too(flags, ask, tmp_path):
    tasks = WITHOUT_INDUCTO if not flags else '--tasks=inducto,logic'
    code, text = ask(tasks, '--questions=tones', '--difficulties=1', '--samples=3', *flags)
    assert code == 0 and '100.0%' in text
    played = rows_of(tmp_path / 'results.jsonl')[0]['metadata']['played']
    assert any(is_question(t, played) for t in words.PUZZLES)


def test_ctrl_c_loses_and_repeats_nothing(server, tmp_path):
    pytest.importorskip('httpx')
    Server.trouble = ['slow'] * 100
    command = [sys.executable, '-m', 'text.ask', f'--base_url={server}', '--model=wise',
               '--samples=20', '--tasks=logic', '--difficulties=1', '--max_concurrent=2',
               '--requests_per_minute=100000', f'--out_dir={tmp_path}']
    p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                         cwd=ROOT)
    while len(Server.asked) < 6:
        assert p.poll() is None
        time.sleep(0.02)
    p.send_signal(signal.SIGINT)
    said, _ = p.communicate(timeout=30)
    assert p.returncode == 130 and 'the same command asks them' in said and 'Traceback' not in said
    before = rows_of(tmp_path / 'results.jsonl')
    assert 4 <= len(before) < 20
    Server.trouble.clear()
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    after = rows_of(tmp_path / 'results.jsonl')
    assert after[:len(before)] == before
    assert len({row['sample_id'] for row in after}) == len(after) == len(Server.asked) == 20


def test_summaries_are_drawn_beside_each_other(ask, tmp_path, capsys):
    assert ask(WITHOUT_INDUCTO, '--samples=2')[0] == 0
    picture = tmp_path / 's.png'
    output(capsys, 'lab/figures.py', '--what=scaling', tmp_path, tmp_path / 'summary.json',
           f'--out={picture}')
    assert is_png(picture)
    assert 'has no summary.json' in refusal(capsys, 'lab/figures.py', '--what=scaling',
                                            tmp_path / 'no')


@pytest.mark.parametrize('flags, says', [
    (['--model='], 'name a model'),
    (['--model=x', '--tasks=mod'], 'tasks are some of'),
    (['--model=x', '--difficulties=4'], 'difficulties are some of'),
    (['--model=x', '--audio=true'], 'audio=true needs questions=tones'),
    (['--model=x', '--tasks='], 'name a task'),
    (['--model=x', '--difficulties='], 'name a difficulty'),
    (['--model=x', '--base_url=localhost:80'], 'base_url begins with http'),
    (['--model=x', '--base_url=http://a:b'], 'base_url is no address'),
    (['--model=x', '--base_url=http://127.0.0.1:9/v1'],
     'cannot connect to http://127.0.0.1:9/v1'),
])
def test_what_cannot_be_asked(flags, says, capsys, tmp_path):
    pytest.importorskip('httpx')
    if 'cannot connect' in says:
        flags = [*flags, f'--out_dir={tmp_path}']
    assert run_here('text/ask.py', *flags)[0] in (1, 2)
    assert says in capsys.readouterr().err


def test_without_httpx_it_is_said(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'httpx', None)
    assert 'pip install httpx' in refusal(capsys, 'text/ask.py', '--model=x')

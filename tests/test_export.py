"""
The page in a browser: the exported network, and Chromium, which asks it.

$ python -m pytest tests/test_export.py
$ QUESTIONS=1000 python -m pytest -s tests/test_export.py    # and prints what it found
"""
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import pytest
import torch
import torch.nn.functional as F

from checkpoint import load_checkpoint
from files import write_wav
from prepare import LOUDNESS, play_text, split_batches
from tasks import SYMBOLS, TASKS
from tests.helpers import path_of, refusal, tiny_model
from think import TONE, change, converse, one_pass, with_silence
from transcribe import transcribe

pytest.importorskip('onnx')
pytest.importorskip('onnxscript')
onnxruntime = pytest.importorskip('onnxruntime')
export = pytest.importorskip('export')

N = int(os.environ.get('QUESTIONS', 50))


# --- the network ---

def session_of(net):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(export.to_onnx(net).SerializeToString(), options)


@pytest.fixture(scope='module')
def release():
    """The release, in PyTorch and in onnxruntime"""
    model, _ = load_checkpoint(init_from='release')
    return model, session_of(export.exportable(model))


def whole_tokens(wave, token):
    """(S,) -> (1, S), S a multiple of the token"""
    return F.pad(wave, (0, -len(wave) % token))[None]


def noise_for(question, token):
    return torch.randn(question.shape[1] + token, generator=torch.Generator().manual_seed(0))


def run_pass(session, question, noise):
    """As OnePass.forward"""
    answer, changed = session.run(None, {'question': question.numpy(), 'noise': noise.numpy()})
    return torch.from_numpy(answer), float(changed[0])


def difference(model, session, question):
    """Between a pass in onnxruntime and in PyTorch: of waves, and of changes"""
    noise = noise_for(question, model.config.token)
    answer, changed = run_pass(session, question, noise)
    S = question.shape[1]
    with torch.inference_mode():
        question = with_silence(model, question)
        heard = model.spectrum.stft(question)
        wave, _ = one_pass(model, question, heard, torch.tensor([S]), noise)
        wanted = float(change(model, heard, model.spectrum.stft(wave))[0])
    assert answer.shape == (1, S)
    return float((answer - wave[:, :S]).abs().max()), abs(changed - wanted)


@pytest.mark.parametrize('text', [
    'V',
    '7%3',
    '(()())',
    '987%65%7',
    'CABBFEDIHJGA',
    '12345678901234567890%987',
    50 * '(' + 50 * ')',
])
def test_one_pass_is_that_of_pytorch(text, release):
    model, session = release
    question = whole_tokens(play_text(text), model.config.token)
    waves, changes = difference(model, session, question)
    print(f"{text} differs by {waves:.0e}")
    assert waves < 1e-3 and changes < 1e-3


def test_silence_stays_silent(release):
    model, session = release
    question = torch.zeros(1, 20 * model.config.token)
    answer, changed = run_pass(session, question, noise_for(question, model.config.token))
    assert answer.abs().max() < 1e-3 and changed < TONE


def test_other_settings_can_be_exported():
    model = tiny_model(n_encoder=1, n_decoder=2, points_at='same,end,again').half().float()
    session = session_of(export.exportable(model))
    # Untrained, it plays noise; in longer questions the phase of that is left to rounding.
    for text in ('V', 'ABC', 'CABB'):
        question = whole_tokens(play_text(text), model.config.token)
        waves, changes = difference(model, session, question)
        assert waves < 1e-3 and changes < 1e-3


def converse_in_onnxruntime(session, question, token, think):
    """As think.converse, of one question (S,) -> the last answer"""
    question = whole_tokens(question, token)
    noise = noise_for(question, token)
    for _ in range(think):
        question, changed = run_pass(session, question, noise)
        if changed < TONE:
            break
    return question[0]


@pytest.mark.parametrize('task', TASKS)
def test_questions_come_to_the_same_symbols(task, release):
    model, session = release
    if task not in load_checkpoint(init_from='release')[1]['config']['tasks'].split(','):
        pytest.skip(f"the release does not know {task}")
    token, s = model.config.token, model.spectrum
    same = 0
    for b in split_batches(task, 'iid', N):
        answers, _ = converse(model, b.question, b.lengths, think=64)
        wanted = transcribe(answers[-1])
        loudest = s.magnitude(s.stft(b.question)).amax((1, 2))
        louder = b.question * (LOUDNESS / loudest)[:, None]
        for wave, n, text in zip(louder, b.lengths, wanted, strict=True):
            answer = converse_in_onnxruntime(session, wave[:n], token, 64)
            same += transcribe(answer[None])[0] == text
    print(f"{task}: {same} of {N} come to the same symbols")
    assert same == N


# --- the page ---

@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    """A folder that export.py wrote"""
    if not shutil.which('npm'):
        pytest.skip("there is no npm")
    folder = tmp_path_factory.mktemp('page') / 'demo'
    command = [sys.executable, path_of('export.py'), '--init_from=release', f'--demo_dir={folder}']
    made = subprocess.run(command, capture_output=True, text=True)
    if 'npm could not fetch' in made.stderr:
        pytest.skip("npm cannot fetch onnxruntime-web here")
    assert made.returncode == 0 and not made.stderr, made.stderr
    return folder


def test_the_page_is_small(demo):
    sizes = {f.name: f.stat().st_size for f in demo.iterdir()}
    assert sum(size for name, size in sizes.items() if not name.startswith('ort')) <= 5e6
    assert sum(sizes.values()) <= 7e6
    for name in ('ort.wasm.min.js', 'model.onnx.gz', 'ort-wasm-simd-threaded.wasm.gz'):
        assert (demo / name).exists()
    settings = json.loads((demo / 'settings.json').read_text())
    assert settings['symbols'] == SYMBOLS
    for task in settings['tasks']:
        assert TASKS[task['name']].example == task['example'] and task['about']


def test_without_npm_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('PATH', str(tmp_path))
    folder = tmp_path / 'demo'
    flags = ['--init_from=release', f'--demo_dir={folder}']
    assert 'npm' in refusal(capsys, 'export.py', *flags, code=1)
    assert not folder.exists()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


class Chromium:
    """A headless browser, spoken to through two pipes in Chrome's DevTools protocol"""

    def __init__(self, *flags):
        from_us, to_browser = os.pipe()
        from_browser, to_us = os.pipe()
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        command = ['bash', '-c', f'exec "$@" 3<&{from_us} 4>&{to_us}', '', 'chromium',
                   '--headless=new', '--no-sandbox', '--disable-gpu', '--remote-debugging-pipe',
                   f'--user-data-dir={self.folder.name}', *flags, 'about:blank']
        self.process = subprocess.Popen(command, pass_fds=(from_us, to_us),
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(from_us)
        os.close(to_us)
        self.out, self.into = os.fdopen(to_browser, 'wb', 0), os.fdopen(from_browser, 'rb')
        self.n, self.session, self.events = 0, {}, []
        pages = self.send('Target.getTargets')['targetInfos']
        target = next(page['targetId'] for page in pages if page['type'] == 'page')
        attached = self.send('Target.attachToTarget', targetId=target, flatten=True)
        self.session = {'sessionId': attached['sessionId']}
        self.send('Network.enable')

    def send(self, method, **params):
        """A command -> its result"""
        self.n += 1
        message = {'id': self.n, 'method': method, 'params': params, **self.session}
        self.out.write(json.dumps(message).encode() + b'\0')
        while True:
            reply = bytearray()
            while not reply.endswith(b'\0'):
                byte = self.into.read(1)
                assert byte, "Chromium has ended"
                reply += byte
            reply = json.loads(reply[:-1])
            if reply.get('id') == self.n:
                assert 'result' in reply, reply
                return reply['result']
            self.events.append(reply)

    def evaluate(self, expression):
        """JavaScript -> its value, None where it throws"""
        result = self.send('Runtime.evaluate', expression=expression, returnByValue=True,
                           userGesture=True)
        return result['result'].get('value')

    def text(self, name):
        """Of the element with this id"""
        return self.evaluate(f"document.getElementById('{name}').innerText") or ''

    def wait_for(self, name, words):
        """Until the element with this id says so"""
        deadline = time.monotonic() + 60
        while words not in self.text(name):
            assert time.monotonic() < deadline, self.evaluate('document.body.innerText')
            time.sleep(0.05)

    def type(self, text):
        """Key by key; Enter is \\r, Tab is \\t"""
        for c in text:
            key = {'\r': 'Enter', '\t': 'Tab'}.get(c, c)
            code = ord(c) if c in '\r\t ' else 0
            press = {'key': key, 'windowsVirtualKeyCode': code}
            self.send('Input.dispatchKeyEvent', type='keyDown', text=c, **press)
            self.send('Input.dispatchKeyEvent', type='keyUp', **press)

    def close(self):
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()


@pytest.fixture(scope='module')
def address(demo):
    handler = functools.partial(Quiet, directory=demo)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()


@pytest.fixture(scope='module')
def recording(tmp_path_factory):
    """7%3, with silence around it, as a microphone would hear it"""
    path = tmp_path_factory.mktemp('recording') / 'question.wav'
    silence = torch.zeros(16000)
    write_wav(path, torch.cat([silence, play_text('7%3'), *[silence] * 8]))
    return path


@pytest.fixture(scope='module')
def browser(recording):
    if not shutil.which('chromium'):
        pytest.skip("there is no chromium")
    chromium = Chromium('--use-fake-ui-for-media-stream', '--use-fake-device-for-media-stream',
                        f'--use-file-for-fake-audio-capture={recording}%noloop')
    yield chromium
    chromium.close()


@pytest.fixture
def page(browser, address):
    """The browser, when the page is ready"""
    browser.send('Emulation.clearDeviceMetricsOverride')
    browser.events.clear()
    browser.send('Page.navigate', url=address)
    browser.wait_for('said', 'Ready')
    return browser


def test_chromium_asks_and_reads_the_answer(page, address):
    page.evaluate("document.getElementById('question').focus()")
    began = time.monotonic()
    page.type('987%65%7\r')
    page.wait_for('said', 'Asked 987%65%7, it plays 5 after 9 passes.')
    print(f"ten passes in Chromium took {time.monotonic() - began:.2f} s")
    assert page.text('answer') == '5'
    passes = page.text('passes')
    for line in ('question: 987%65%7', 'pass 1: 337%65%7', 'pass 8: 5%7', 'pass 9: 5'):
        assert line in passes
    sent = [event['params'] for event in page.events
            if event['method'] == 'Network.requestWillBeSent']
    assert len(sent) > 5
    for request in sent:
        assert request['request']['url'].startswith((address, 'data:', f'blob:{address}'))


def test_a_link_asks_by_itself(browser, address):
    browser.send('Page.navigate', url=address + '?ask=(()')
    browser.wait_for('said', 'Asked ((), it plays X')


@pytest.mark.parametrize('typed, says', [
    ('7!', 'has no tone'),
    ('', 'at least one symbol'),
    ('7' * 500, 'at most'),
])
def test_what_cannot_be_asked_is_said_in_a_sentence(typed, says, page):
    page.evaluate("document.getElementById('question').focus()")
    page.send('Input.insertText', text=typed)
    page.type('\r')
    page.wait_for('said', says)


def test_keys_play_and_have_names(page):
    page.evaluate("document.querySelector('#keys button[aria-label^=C]').focus()")
    page.type(' \t ')  # C, and the key behind it
    assert page.evaluate("document.getElementById('question').value") == 'CD'
    page.evaluate("document.getElementById('question').focus()")
    page.type('\r')
    page.wait_for('said', 'it plays CD')
    for node in page.send('Accessibility.getFullAXTree')['nodes']:
        role = node.get('role', {}).get('value')
        if role in ('button', 'textbox', 'image', 'link', 'list') and not node['ignored']:
            assert node['name']['value'], node


def test_it_fits_a_telephone(page, address):
    page.send('Emulation.setDeviceMetricsOverride', width=400, height=800, deviceScaleFactor=1,
              mobile=True)
    page.send('Page.navigate', url=address + '?ask=987%2565%257')
    page.wait_for('said', 'it plays 5')
    assert page.evaluate('document.documentElement.scrollWidth') <= 400
    for name in ('play', 'sing'):
        page.evaluate(f"document.getElementById('{name}').open = true")
    assert page.evaluate('document.documentElement.scrollWidth') <= 400


def choose_file(page, path):
    root = page.send('DOM.getDocument')['root']['nodeId']
    chosen = page.send('DOM.querySelector', nodeId=root, selector='#file')['nodeId']
    page.send('DOM.setFileInputFiles', nodeId=chosen, files=[str(path)])


def test_a_recording_is_answered(page, recording):
    choose_file(page, recording)
    page.wait_for('said', 'Asked 7%3, it plays 1')


def test_a_recording_that_ends_at_once_is_answered_behind_its_end(page, tmp_path):
    write_wav(tmp_path / 'question.wav', play_text('BDJH>BJ?IJA>IA?AJCG>'))
    choose_file(page, tmp_path / 'question.wav')
    page.wait_for('said', 'it plays AC after')


def test_a_file_without_sound_is_said_to_be_one(page, tmp_path):
    (tmp_path / 'not.wav').write_text('no sound')
    choose_file(page, tmp_path / 'not.wav')
    page.wait_for('said', 'holds no sound')


def test_the_microphone_is_heard_until_it_is_silent(page):
    page.evaluate("document.getElementById('record').click()")
    page.wait_for('said', 'Recording')
    page.wait_for('said', 'Asked 7%3, it plays 1')
    assert page.text('record') in ('Record', '')

"""
Every test.

$ python -m pytest test_smoke.py      # six minutes on two CPU cores
"""
import functools
import importlib.util
import io
import json
import math
import multiprocessing
import operator
import os
import random
import re
import resource
import runpy
import signal
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.io import wavfile
from scipy.signal import resample_poly

import prepare
import score
from configurator import configure
from model import JMambaConfig, MiniJMamba, load_checkpoint, local_values, local_weights, save_checkpoint, ssd
from prepare import (SPLITS, SYMBOLS, TASKS, bucket_of, decode, draw, encode, make_batch, make_rhythm, max_samples, play,
                     play_text, read_wav, solve, split_batches, working, write_wav)
from score import edit_distance, find_tones, transcribe

HERE = os.path.dirname(os.path.abspath(__file__))
TINY = dict(d_model=32, d_state=16, head_dim=16, n_head=2)


def run(script, *flags, code=0, stdin=None):
    """Run a script as a user would -> its output; a failure must be one line and no traceback"""
    p = subprocess.run([sys.executable, os.path.join(HERE, script), *map(str, flags)], capture_output=True, text=True, input=stdin)
    assert p.returncode == code, p.stdout + p.stderr
    if code:
        assert 'Traceback' not in p.stderr and len(p.stderr.strip().splitlines()) == 1, p.stderr
    return p.stdout + p.stderr


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


# --- the scorer ---

@pytest.mark.parametrize('rate', [8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 96000])
def test_every_symbol_is_heard_at_every_rate(tmp_path, rate):
    wave = play_text(SYMBOLS).numpy().astype(np.float64)
    x = resample_poly(wave, rate, 16000)
    stereo = np.stack([x, 0.5 * x], 1)
    kinds = {'u8': ((x + 1) * 127.5).round().astype(np.uint8), 'i16': (x * 32767).astype(np.int16),
             'i32': (stereo * (2 ** 31 - 1)).astype(np.int32), 'f32': stereo.astype(np.float32)}
    for kind, data in kinds.items():
        path = str(tmp_path / f'{kind}.wav')
        wavfile.write(path, rate, data)
        assert transcribe(read_wav(path)[None]) == [SYMBOLS], (kind, rate)


def test_24_bit_and_gain(tmp_path):
    pcm = (play_text('ABBA').numpy() * (2 ** 23 - 1)).astype(np.int32)
    raw = pcm.astype('<i4').tobytes()
    data = b''.join(raw[i:i + 3] for i in range(0, len(raw), 4))
    header = b'RIFF' + (36 + len(data)).to_bytes(4, 'little') + b'WAVEfmt ' + (16).to_bytes(4, 'little') + \
        (1).to_bytes(2, 'little') + (1).to_bytes(2, 'little') + (16000).to_bytes(4, 'little') + \
        (48000).to_bytes(4, 'little') + (3).to_bytes(2, 'little') + (24).to_bytes(2, 'little') + \
        b'data' + len(data).to_bytes(4, 'little')
    (tmp_path / 'a.wav').write_bytes(header + data)
    wave = read_wav(str(tmp_path / 'a.wav'))
    assert (wave - play_text('ABBA')).abs().max() < 1e-5
    assert transcribe(wave[None] * 0.01) == ['ABBA']


def test_silence_noise_and_wrong_pitches_are_no_symbols():
    t = torch.arange(16000) / 16000
    tone = lambda hertz: 0.5 * torch.sin(2 * np.pi * hertz * t) * ((t > 0.3) & (t < 0.4))
    assert transcribe(torch.zeros(1, 16000)) == ['']
    assert transcribe(1e-5 * torch.randn(1, 16000)) == ['']
    assert not set(''.join(transcribe(torch.randn(50, 32000, generator=gen())))) - {'?'}
    for hertz in range(450, 3100, 100):
        assert transcribe(tone(hertz)[None]) == ['?'], hertz  # between two tones
    for a, b in ((500, 600), (500, 1500), (1200, 2900)):
        assert set(transcribe((tone(a) + tone(b))[None])[0]) <= {'?'}, (a, b)  # both at once
    assert transcribe(tone(250)[None]) == ['?'] and transcribe(tone(5000)[None]) == ['?']
    assert transcribe((tone(500) + tone(600).roll(1600))[None]) == ['AB']  # two tones with no gap


def test_scorer_on_ten_thousand_symbols_clean_and_at_0_dB():
    g = gen(1)
    symbols = torch.randint(len(SYMBOLS), (500, 20), generator=g)
    wave = play(symbols, make_rhythm(500, 20, g), max_samples(20))
    wanted = [decode(s) for s in symbols]
    assert transcribe(wave) == wanted
    signal_power = wave[wave.abs() > 0].square().mean()  # of the tones alone
    noisy = wave + signal_power.sqrt() * torch.randn(wave.shape, generator=g)
    wrong = sum(edit_distance(h, w) for h, w in zip(transcribe(noisy), wanted))
    assert wrong <= 100, f"{wrong} of 10,000 symbols wrong at 0 dB"
    print(f"scorer: 10000 of 10000 symbols clean, {10000 - wrong} at 0 dB")


def test_find_tones_measures():
    tones = find_tones(play(torch.tensor([encode('A9')]), rhythm := make_rhythm(1, 2, gen()), 6400))
    assert tones.hertz.tolist() == pytest.approx((torch.tensor([500.0, 2900.0]) + rhythm.detune[0]).tolist(), abs=0.3)
    assert tones.start.tolist() == pytest.approx(rhythm.start[0].tolist(), abs=0.012)
    assert tones.length.tolist() == pytest.approx(rhythm.length[0].tolist(), abs=0.02)
    assert tones.level.tolist() == pytest.approx((20 * rhythm.amplitude[0].log10()).tolist(), abs=1)


def test_a_tone_too_short_for_a_symbol_is_found_when_asked_for():
    rhythm = make_rhythm(1, 4, gen())
    rhythm.length[0, 2] = 0.025
    wave = play(torch.tensor([encode('CABL')]), rhythm, 12800)
    assert transcribe(wave) == ['CAL'] and transcribe(wave, shortest=2) == ['CABL']


def test_edit_distance():
    assert [edit_distance(a, b) for a, b in (('', 'AB'), ('AB', 'AB'), ('ABC', 'AC'), ('12', '21'), ('A', 'BCA'))] == [2, 0, 1, 2, 2]


# --- the data ---

def balanced(text):
    while '()' in text:
        text = text.replace('()', '')
    return not text


@pytest.mark.parametrize('task', TASKS)
def test_no_test_question_can_be_trained_on(task):
    few = lambda text: '%' not in text and len(text) <= 6 if task != 'mirror' else False
    kinds = [dict(aloud=True), {}] if task == 'mod' else [dict(low=3, high=4), {}] if task == 'mirror' else [{}]
    for k in kinds:
        seen = {'train': set(), 'val': set(), 'test': set()}
        for split, bucket in (('train', 0), ('val', 1), ('iid', 2)):
            g = gen(len(split))
            for _ in range(20 if split == 'train' else 10):
                q, _ = draw(task, split, 5000 if split == 'train' else 100, g, **({} if split != 'train' and task == 'bracket' else k))
                assert (bucket_of(q) == bucket).all() or split != 'train'
                seen['test' if split == 'iid' else split].update(map(decode, q.tolist()))
        held = {t for t in seen['val'] | seen['test'] if not few(t)}
        assert len(held) > 50 and not held & seen['train'] and not seen['val'] & {t for t in seen['test'] if not few(t)}


def test_labels_against_an_independent_check():
    for split in [s for s in SPLITS['bracket']]:
        q, a = draw('bracket', split, 400, gen(2))
        texts, answers = [decode(r) for r in q], [decode(r) for r in a]
        assert answers == ['V' if balanced(t) else 'X' for t in texts]
        assert 190 <= answers.count('V') <= 210
        for t, verdict in zip(texts, answers):
            if verdict == 'X' and split in ('wrong_order', 'one_swap'):
                assert t.count('(') == t.count(')')
    for split in SPLITS['mod']:
        q, a = draw('mod', split, 400, gen(3))
        for t, answer in zip(map(decode, q), map(decode, a)):
            x, *rest = map(int, t.split('%'))
            first = x // rest[0]
            for b in rest:
                x %= b
            assert answer == str(x)
            if split.startswith('quotient'):
                low, high = SPLITS['mod'][split]['quotient']
                assert low <= first <= high
    q, a = draw('mirror', 'ood_compose_20', 200, gen(4))
    assert (q == a).all() and all(set(decode(r)) & set('KL') and len(decode(r)) == 20 for r in q)
    assert not set(''.join(decode(r) for r in draw('mirror', 'train', 1000, gen())[0])) & set('KL')


def test_what_a_question_comes_to_so_far():
    for task, rests in (('mod', 0), ('mod', 5), ('bracket', 3)):
        q = draw(task, 'train', 300, gen(6), rests=rests)[0]
        for asked, row in zip(q, prepare.so_far(task, q).tolist()):
            for i, found in enumerate(row):
                text = decode(asked[:i + 1])
                if task == 'bracket':
                    depth = [0, *prepare.depth_of(text)]
                    assert found == (99 if min(depth) < 0 else 100 if depth[-1] == 0 else 101)
                else:
                    assert found == (int(prepare.solve('mod', text)) if re.search(r'%\d+$', text) else -1)


@pytest.mark.parametrize('task, answered', [('mod', lambda t: str(functools.reduce(operator.mod, [int(x or 0) for x in t.split('%')]))),
                                            ('bracket', lambda t: t if t in ('V', 'X') else 'V' if balanced(t) else 'X')])
def test_a_line_of_working_is_played_in_place_and_leads_to_the_answer(task, answered):
    pairs = {'pairs': True} if task == 'mod' else {}
    q, a = draw(task, 'train', 2000, gen(5), aloud=True, rests=4, **pairs)
    starts = set()
    for asked, line in zip(q, a):
        was, now = decode(asked), decode(line)
        lines = working(was)
        assert now == (lines[1] if len(lines) > 1 else was) and lines[-1] == answered(was) == answered(now)
        changed = (asked != line).nonzero()[:, 0]
        assert not len(changed) or task == 'bracket' or (asked[changed[-1] + 1:] >= 0).any() or '%' not in now
        new = asked != line
        assert (line[new & (asked == prepare.REST)] == prepare.REST).all()  # no symbol sounds where none was
        starts.add(len(lines) - 1)
    if task == 'mod':  # neighbours go on with the same divisors
        rest = [decode(r).split('%')[1:] for r in q]
        assert rest[::2] == rest[1::2]
    assert {0, 1, 2, 3} <= starts
    assert working('987%65%7') == ['987%65%7', '337%65%7', '12%65%7', '12%7', '5%7', '5'] and working('(()())') == ['(()())', '()', 'V']
    assert working('14%7') == ['14%7', '%7', '0'] and working('1402%7%5') == ['1402%7%5', '2%7%5', '2%5', '2'] and working('0%3%2') == ['0%3%2', '0%2', '0']
    assert working('14%7%5') == ['14%7%5', '%7%5', '%5', '0'] and working('3') == ['3'] and working('())(') == ['())(', ')(', 'X'] and working('12345%1%2')[-1] == '0'


def test_rests_are_strewn_into_question_and_answer_alike():
    q, a = draw('mod', 'train', 500, gen(1), aloud=True)
    r, s = prepare.strew([q, a], 6, gen(2))
    assert r.shape[1] == q.shape[1] + 6 and [decode(x) for x in r] == [decode(x) for x in q] and [decode(x) for x in s] == [decode(x) for x in a]
    where = [(row >= 0).nonzero()[:, 0] for row in r]
    holes = [int((w.diff() > 1).sum()) for w in where if len(w) > 1]
    assert {0, 1, 2} <= set(holes) and any(int(w[-1]) == r.shape[1] - 1 for w in where) and any(int(w[0]) > 8 for w in where)
    b = make_batch('mirror', 'train', 200, gen(3), rests=6)
    assert transcribe(b.question) == [decode(x) for x in b.asked]
    behind = [float(n) / 16000 - float(e[(x >= 0).nonzero()[-1]]) for n, e, x in zip(b.lengths, b.rhythm.end, b.asked)]
    assert min(behind) > -1e-4 and sum(t > 0.1 for t in behind) > 20 and sum(t < 0.1 for t in behind) > 20  # silence may follow, or not


def test_foreign_symbols_among_the_letters():
    q, a = draw('mirror', 'train', 500, gen(1), foreign=0.4)
    texts = [decode(x) for x in q]
    assert torch.equal(q, a) and all(set(t) & set('ABCDEFGHIJ') for t in texts) and set(''.join(texts)) == set(prepare.SYMBOLS) - set('KL')
    assert 0.15 < sum(not c.isalpha() or c in 'VX' for t in texts for c in t) / len(''.join(texts)) < 0.25
    assert not set(''.join(decode(x) for x in draw('mirror', 'train', 500, gen(1))[0])) - set('ABCDEFGHIJ')


def test_a_level_is_a_difficulty():
    easy, hard = (draw('mirror', 'train', 300, gen(), level=x)[0] for x in (0.0, 1.0))
    assert set((easy >= 0).sum(1).tolist()) == {3} and set((hard >= 0).sum(1).tolist()) == set(range(3, 11))
    easy, hard = (draw('bracket', 'train', 2000, gen(), level=x)[0] for x in (torch.tensor(0.0), torch.tensor(1.0)))
    assert set((easy >= 0).sum(1).tolist()) == {2, 4, 6, 8, 10} and set((hard >= 0).sum(1).tolist()) == {2, 4, 6, 8, 10, 12}
    numbers = lambda x: [list(map(int, decode(r).split('%'))) for r in draw('mod', 'train', 2000, gen(), level=x)[0]]
    easy, hard = numbers(0.0), numbers(1.0)
    assert {len(r) for r in easy} == {2} and {len(r) for r in hard} == {2, 3}
    assert max(r[0] for r in easy) <= 10 and max(r[0] for r in hard) > 900 and max(r[1] for r in easy) <= 9 and max(r[1] for r in hard) == 99


def test_shortcuts_give_brackets_little_away():
    q, a = draw('bracket', 'train', 4000, gen(6))
    rows = [(decode(x), decode(y) == 'V') for x, y in zip(q, a)]
    accuracy = lambda guess: max(np.mean([guess(t) == v for t, v in rows]), np.mean([guess(t) != v for t, v in rows]))
    assert accuracy(lambda t: t.count('(') == t.count(')')) < 0.62
    assert accuracy(lambda t: t[0] == '(') < 0.62 and accuracy(lambda t: t[-1] == ')') < 0.62
    assert all(len(t) % 2 == 0 for t, _ in rows)


def test_splits_are_the_same_every_time_and_batches_do_not_matter():
    one = torch.cat([b.question for b in split_batches('mod', 'iid', 60)])
    two = torch.cat([b.question for b in split_batches('mod', 'iid', 73)])
    assert torch.equal(one, two[:60]) and not torch.equal(one, torch.cat([b.question for b in split_batches('mod', 'iid', 60, 1)]))


def test_question_and_answer_of_a_batch_are_what_the_scorer_hears():
    for task in TASKS:
        b = make_batch(task, 'train', 64, gen(7))
        assert transcribe(b.question) == [decode(r) for r in b.asked]
        assert transcribe(b.answer) == [decode(r) for r in b.wanted]
        assert b.question.shape[1] % prepare.BLOCK == 0 and b.lengths.max() <= b.question.shape[1]
        silent = torch.arange(b.question.shape[1]) >= b.lengths[:, None]
        assert (b.answer * silent).abs().max() == 0  # the window holds the whole answer


# --- the model ---

def recurrence(x, dt, A, B, C):
    """The scan as it is defined, one token after another"""
    h, y = torch.zeros(x.shape[0], x.shape[2], x.shape[3], B.shape[2], dtype=x.dtype), []
    for t in range(x.shape[1]):
        h = h * (dt[:, t] * A).exp()[..., None, None] + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, None, None]
        y.append((h * C[:, t, None, None]).sum(-1))
    return torch.stack(y, 1)


@pytest.mark.parametrize('T', [1, 7, 16, 17, 48, 75])
def test_ssd_equals_the_recurrence(T):
    g = gen(T)
    r = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    inputs = [r(2, T, 4, 3), torch.rand(2, T, 4, generator=g, dtype=torch.float64), -torch.tensor([0, 0, 1.0, 30]).double(),
              r(2, T, 5), r(2, T, 5)]
    weight, results = r(2, T, 4, 3), []
    for scan in (recurrence, lambda *a: ssd(*a, chunk=16)):
        leaves = [t.clone().requires_grad_() for t in inputs]
        y = scan(*leaves)
        results.append([y, *torch.autograd.grad((y * weight).sum(), leaves)])
    for a, b in zip(*results):
        # the decays are fp32 on purpose
        assert (a - b).norm() <= 2e-6 * a.norm() + 1e-9


PARITY = """
import contextlib, sys, types
import torch, triton
sys.path.insert(0, sys.argv[1])
from model import ssd, ssd_kernel
# what the kernel asks of a GPU; and the first of each kernel's configurations, as there is nothing to time here
torch.cuda.device = lambda *_: contextlib.nullcontext()
torch.cuda.get_device_properties = lambda _: types.SimpleNamespace(multi_processor_count=1)
def run(self, *args, **more):
    c = self.best_config = self.configs[0]
    if c.pre_hook:
        c.pre_hook({**dict(zip(self.arg_names, args)), **more, **c.all_kwargs()})
    return self.fn.run(*args, **more, **c.all_kwargs())
triton.runtime.autotuner.Autotuner.run = run
g = torch.Generator().manual_seed(0)
r = lambda *shape: torch.randn(*shape, generator=g)
inputs, weight, results = [r(2, 40, 4, 16), torch.rand(2, 40, 4, generator=g), -torch.tensor([0, 0, 1.0, 8]), r(2, 40, 16), r(2, 40, 16)], r(2, 40, 4, 16), []
for scan in (lambda *a: ssd(*a, 16), ssd_kernel):
    leaves = [t.clone().requires_grad_() for t in inputs]
    y = scan(*leaves)
    results.append([y, *torch.autograd.grad((y * weight).sum(), leaves)])
print(max(float((a - b).norm() / a.norm()) for a, b in zip(*results)))
"""


SHORT_PARITY = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from model import ShortMixer, mixer, ssd
device, kind = sys.argv[2], getattr(torch, sys.argv[3])
g = torch.Generator().manual_seed(0)
r = lambda *shape: torch.randn(*shape, generator=g)
for B, T, H, P, N in ((3, 17, 3, 16, 32), (65, 2, 2, 16, 16), (1, 70, 2, 16, 16), (2, 128, 2, 32, 64), (2, 40, 2, 32, 128)):
    C, results = H * P + 2 * N, []
    W = H * P + C + H + 3
    inputs = [r(B, T, W).to(kind), r(4, C), r(C), r(H), -torch.tensor([0, 8.0, 1])[:H], 1 + torch.rand(H, generator=g)]
    pace = torch.rand(B, T, 1, generator=g).to(device)
    pace[:, 3:5] = 0  # time stands still
    weight = r(B, T, H * P).to(device)
    plain = lambda zxBCdt, *more: mixer(zxBCdt.float(), *more, lambda *inputs: ssd(*inputs, 16))
    for f in (plain, ShortMixer.apply):
        leaves = [t.to(device).requires_grad_() for t in inputs]
        y = f(leaves[0], pace, *leaves[1:], P, N)
        results.append([y.detach(), *torch.autograd.grad((y * weight).sum(), leaves)])
    print(*(float((a - b).norm() / a.norm()) for a, b in zip(*results)))
"""


@pytest.mark.parametrize('script, packages', [(PARITY, ('triton', 'mamba_ssm', 'einops')), (SHORT_PARITY, ('triton',))])
def test_kernels_equal_ssd_in_tritons_interpreter(script, packages):
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    p = subprocess.run([sys.executable, '-c', script, HERE, 'cpu', 'float32'], capture_output=True, text=True, env={**os.environ, 'TRITON_INTERPRET': '1'})
    assert p.returncode == 0 and max(map(float, p.stdout.split())) < 1e-5, p.stdout + p.stderr


@pytest.mark.parametrize('kind, bound', [('float16', 1e-2), ('bfloat16', 8e-2)])
def test_short_mixer_equals_ssd_on_a_gpu(kind, bound):  # the interpreter does what Python does, which is not always what Triton compiles
    if not torch.cuda.is_available() or importlib.util.find_spec('triton') is None:
        pytest.skip("there is no GPU, or no Triton")
    p = subprocess.run([sys.executable, '-c', SHORT_PARITY, HERE, 'cuda', kind], capture_output=True, text=True)
    assert p.returncode == 0 and max(map(float, p.stdout.split())) < bound, p.stdout + p.stderr


def test_the_encoder_does_not_hear_the_future_and_padding_does_not_matter():
    torch.manual_seed(0)
    model = MiniJMamba(JMambaConfig(**TINY)).eval()
    x = torch.randn(2, 80 * 800)
    y = x.clone()
    y[:, 33 * 800:] = torch.randn(2, 47 * 800)
    a, b = model.encode(model.hear(x)), model.encode(model.hear(y))
    assert torch.equal(a[:, :33], b[:, :33]) or (a[:, :33] - b[:, :33]).abs().max() < 1e-6
    assert (a[:, 33] - b[:, 33]).abs().max() > 1e-3
    lengths = torch.tensor([33 * 800, 20 * 800 - 5])
    one, two = model(x, lengths)[0], model(y[:, :40 * 800], lengths)[0]
    for i, n in enumerate(lengths // 800):
        assert (one[i, :5 * n] - two[i, :5 * n]).abs().max() < 1e-4
    assert model.generate(x, lengths)[1, 20 * 800 - 5:].abs().max() == 0


def test_a_token_at_a_time_is_the_same():
    torch.manual_seed(0)
    model = MiniJMamba(JMambaConfig(**TINY)).eval()
    sound = torch.randn(2, 1200 * 800) * 0.1  # a minute
    with torch.no_grad():
        heard = model.hear(sound)
        memory, state, sizes, stepped = model.encode(heard), None, set(), []
        for t in range(1200):
            x, frames, state = model.step(sound[:, 800 * t:800 * (t + 1)], state)
            assert (frames - heard[:, t]).abs().max() < 1e-4
            stepped.append(x)
            sizes.add(sum(s.numel() for layer in state[1] for s in layer) + state[0].numel())
    off = torch.stack(stepped, 1) - memory
    assert off.norm() < 1e-4 * memory.norm() and off[:, -100:].norm() < 1e-4 * memory[:, -100:].norm() and len(sizes) == 1


def test_spectrum_there_and_back():
    s = MiniJMamba(JMambaConfig(**TINY)).spectrum
    wave = make_batch('mirror', 'train', 4, gen()).answer
    spectrum = s.stft(wave)
    assert (s.istft(spectrum) - wave).abs()[:, :-480].max() < 1e-3
    magnitude = s.magnitude(spectrum)
    assert magnitude.max() == pytest.approx(float(wave.abs().max()), abs=0.02)
    assert (s.exp(s.log(magnitude)) - magnitude).abs().max() < 1e-5
    half = spectrum * (torch.arange(magnitude.shape[1]) < magnitude.shape[1] // 2)[:, None, None]
    for heard, gap in ((torch.zeros_like(spectrum), 0.1), (half, 0.1), (spectrum, 1e-3)):  # where nothing like it was heard the phase is guessed
        played = s.wave(magnitude, heard)
        assert (s.magnitude(s.stft(played)) - magnitude).norm() < gap * magnitude.norm()
        assert transcribe(played) == transcribe(wave)
    cut = wave.shape[1] // 2 - 1000
    assert (s.wave(magnitude, half) - wave)[:, :cut].abs().max() < 0.02


@pytest.mark.parametrize('causal', [False, True])
def test_windowed_attention_equals_masked_attention(causal):
    q, k, v = torch.randn(3, 2, 3, 21, 4, generator=gen())
    valid, reach = torch.arange(21) < torch.tensor([21, 9])[:, None], torch.tensor([2, 8, 5])[:, None, None]
    offset = torch.arange(21) - torch.arange(21)[:, None]
    mask = (offset.abs() <= reach)[None] & valid[:, None, None] & (offset <= 0 if causal else True)
    wanted = (q @ k.transpose(-1, -2) / 2).masked_fill(~mask, -math.inf).softmax(-1).nan_to_num(0) @ v  # nothing where no key can be seen
    got = local_values(local_weights(q, k, valid[:, None], 8, reach, causal), v, 8)
    assert (got - wanted).abs().max() < 1e-5 and (got[1, 0, 11:] == 0).all()


def test_a_faint_remainder_is_played_as_silence():
    model = MiniJMamba(JMambaConfig(**TINY)).eval()
    torch.nn.init.zeros_(model.frames.weight)
    torch.nn.init.constant_(model.gate.bias, -20)
    for level, silent in ((0.9, True), (1.5, False)):  # log magnitudes, as everywhere in the model
        torch.nn.init.constant_(model.frames.bias, level)
        assert bool((model.generate(torch.rand(1, 8000)) == 0).all()) == silent


def test_digital_silence_is_never_heard():
    model, encoded, answered = MiniJMamba(JMambaConfig(**TINY)).eval(), [], []
    encode, answer = model.encode, model.answer
    model.encode = lambda frames: encoded.append(frames) or encode(frames)
    model.answer = lambda memory, heard, lengths: answered.append(heard) or answer(memory, heard, lengths)
    question = torch.zeros(2, 16000)
    model.generate(question)
    model.generate(question)
    noise = model.hear(0.01 * torch.randn(2, 16000, generator=gen()))
    assert torch.equal(*encoded) and encoded[0].mean() == pytest.approx(float(noise.mean()), rel=0.05) and not question.any()
    assert answered[0].max() < 1e-3  # which is what is pointed at: the noise is not played again and again


def test_what_is_out_of_sight_and_what_is_repeated_can_only_be_pointed_at():
    torch.manual_seed(0)
    model = MiniJMamba(JMambaConfig(**TINY)).eval()
    memory, heard, lengths, quiet = torch.randn(2, 40, 32), torch.rand(2, 40, 640), torch.tensor([40 * 800] * 2), torch.zeros(2, 40, 32)
    behind, before = (torch.cat([memory[:, :20], torch.randn(2, 20, 32)], 1)), torch.cat([torch.randn(2, 20, 32), memory[:, 20:]], 1)
    first, second = (lambda x: torch.stack([x[0], memory[1]])), (lambda x: torch.stack([memory[0], x[1]]))
    at = lambda x, seen, noise=quiet: model.answer(x, heard, lengths, None, torch.tensor([seen * 800, 40 * 800]), noise)[1][0]
    off = lambda x, seen: (at(memory, seen) - at(x, seen)).abs().max()
    moves, stays = (lambda *a: off(*a) > 1e-3), (lambda *a: off(*a) < 1e-4)
    assert moves(first(behind), 40) and moves(first(before), 40)  # all is in sight
    assert moves(first(before), 20) and stays(first(behind), 20)
    assert moves(second(behind), 20) and moves(second(before), 20)  # the neighbour is, in its place, and as a whole by content
    assert stays(second(behind), 40) and stays(second(before), 40)
    loud = torch.randn(2, 40, 32)
    assert (at(memory, 20) - at(memory, 20, loud)).abs().max() > 1e-3 and torch.equal(at(memory, 40), at(memory, 40, loud))
    plays = lambda new: model.answer(memory, heard, lengths, new)[0][0]
    new = (torch.arange(200) < 100).expand(2, -1)
    before = plays(new)
    torch.nn.init.ones_(model.frames.bias)
    moved = (plays(new) - before).abs().amax(1)
    assert (moved[:100] > 1e-3).all() and (moved[100:] == 0).all() and (plays(None)[100:] != plays(new)[100:]).any(1).all()


def test_what_is_played_again_does_not_wear_out():
    model = MiniJMamba(JMambaConfig(**TINY)).eval()
    s, b = model.spectrum, make_batch('mirror', 'val', 16, gen())
    wave, clean, texts = b.question, b.answer, [decode(q) for q in b.asked]
    noisy = s.log(s.magnitude(s.stft(wave)))
    kept, tone = s.squelch(noisy), noisy.amax(2) > 1
    assert (noisy > 0.01).float().mean() > 0.5 and (kept > 0).float().mean() < 0.15 and torch.equal(kept.amax(2), noisy.amax(2) * tone)
    for i in range(20):  # as if all of it were pointed at
        heard = s.stft(wave)
        wave = s.wave(s.exp(s.squelch(s.log(s.magnitude(heard)))), heard)
        off = ((wave - clean).square().mean() / clean.square().mean()).sqrt()
        assert off < 0.08, (i, off)
    assert transcribe(wave) == texts


@pytest.mark.parametrize('bad', [dict(head_dim=48), dict(n_head=3), dict(patch=0), dict(counting=2)])
def test_impossible_shapes_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        JMambaConfig(**bad)


def test_a_tiny_model_learns_a_batch_and_its_wavs_score_the_same(tmp_path):
    torch.manual_seed(0)
    model = MiniJMamba(JMambaConfig(**TINY))
    b = make_batch('mirror', 'train', 8, gen())
    wanted = [decode(r) for r in b.wanted]
    exact = lambda texts: np.mean([h == w for h, w in zip(texts, wanted)])
    assert exact(transcribe(model.generate(b.question, b.lengths))) < 0.2
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    target = model.hear(b.answer).unflatten(2, (5, -1)).flatten(1, 2)
    for _ in range(80):
        loss = (model(b.question, b.lengths)[0] - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    played = model.generate(b.question, b.lengths)
    assert exact(transcribe(played)) == 1
    for i, wave in enumerate(played):
        path = str(tmp_path / f'{i}.wav')
        write_wav(path, wave)
        assert transcribe(read_wav(path)[None]) == [wanted[i]]


def test_thinking_stops_when_what_is_played_is_what_was_heard():
    model = MiniJMamba(JMambaConfig(**TINY)).eval()
    lines = torch.tensor([[*encode('98%7'), -1], [*encode('12%'), -1, -1]]), torch.tensor([[-1, *encode('28%7')], [*encode('12%'), -1, -1]])
    waves = [play(x, make_rhythm(2, 5, gen()), 12800) for x in lines]
    hear, asked, heard = model.hear, [], []

    def answer(memory, frames, lengths):  # the first line leads to the second, which leads to itself
        heard.append(transcribe(asked[-1]))
        return hear(F.pad(waves[1][:len(memory)], (0, 800))).unflatten(2, (5, -1)).flatten(1, 2), None, None
    model.hear, model.answer = lambda question: asked.append(question) or hear(question), answer
    answers, passes = model.generate(waves[0], torch.tensor([12800, 12800]), think=16, conversation=True)
    assert passes.tolist() == [1, 0] and len(answers) == 2
    assert heard == [['98%7', '12%'], ['28%7']] and transcribe(answers[-1]) == ['28%7', '12%']


# --- the command line ---

TRAIN = ['--max_iters=6', '--eval_interval=3', '--log_interval=2', '--eval_samples=4', '--batch_size=4', '--d_model=32',
         '--d_state=16', '--head_dim=16', '--n_head=2', '--device=cpu']


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp('out') / 'mirror'
    text = run('train.py', os.path.join(HERE, 'config/mirror.py'), *TRAIN, '--w_wave=1', '--w_stft=0.1', '--test_samples=3', f'--out_dir={out}')
    return out, text


def test_prepare_writes_a_data_set(tmp_path):
    run('prepare.py', '--task=mirror', '--split=ood_length', '--num_samples=7', f'--out_dir={tmp_path}')
    folder = tmp_path / 'mirror' / 'ood_length'
    rows = [json.loads(line) for line in (folder / 'metadata.jsonl').read_text().splitlines()]
    assert len(rows) == 7 and sorted(len(r['question_symbols']) for r in rows) == [15, 15, 15, 20, 20, 40, 40]
    for r in rows:
        wave = read_wav(str(folder / r['question_file_name']))
        assert transcribe(wave[None]) == [r['question_symbols']] and len(wave) == round(r['duration'] * 16000)
        assert transcribe(read_wav(str(folder / r['answer_file_name']))[None]) == [r['answer_symbols']]


def test_train_then_sample_then_score(trained):
    out, text = trained
    assert re.search(r'^mirror_iid_em: \d\.\d{4}$', text, re.M) and 'validation exact match' in text
    log = log_of(out)
    assert [r['iter'] for r in log] == [2, 3, 4, 6, 6] and {'wave', 'stft', 'frames', 'symbols'} <= set(log[0])
    scores = json.loads((out / 'scores.json').read_text())['scores']['mirror']
    assert set(scores) == set(SPLITS['mirror']) - {'train', 'val', 'val_ood'} and scores['iid']['n'] == 3
    assert len(list((out / 'samples').glob('*_answer.wav'))) == 4

    run('figures.py', out / 'samples' / '000_question.wav', f"--out={out / 'picture.png'}")
    assert (out / 'picture.png').read_bytes()[:4] == b'\x89PNG'

    samples = out / 'mine'
    text = run('sample.py', f'--out_dir={out}', '--start=ABCA', f'--sample_dir={samples}')
    assert re.search('asked ABCA, wanted ABCA, heard', text)
    assert sorted(os.listdir(samples)) == ['000.png', '000_answer.wav', '000_question.wav', 'index.html']
    assert transcribe(read_wav(str(samples / '000_question.wav'))[None]) == ['ABCA']
    page = (samples / 'index.html').read_text()
    assert 'src="000_question.wav"' in page and 'src="000_answer.wav"' in page and 'src="000.png"' in page and '<script' not in page
    text = run('sample.py', f'--out_dir={out}', f"--wav={samples / '000_question.wav'}", f"--sample_dir={out / 'again'}")
    assert 'asked ABCA' in text
    table = run('score.py', samples / '000_question.wav', '--verbose=true').splitlines()
    assert table[0] == 'ABCA' and len(table) == 6 and table[2].split()[0] == 'A'


def test_the_released_weights_answer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for spoil in ('', 'phase', 'longer', 'shorter', 'noise'):  # only the last may matter
        text = run('score.py', '--init_from=release', '--split=iid', '--num_samples=67', '--device=cpu', f'--spoil={spoil}')
        exact = dict(re.findall(r'^(\w+)_iid_em: (\S+)$', text, re.M))
        assert set(exact) == {'mirror', 'bracket', 'mod'} and all(float(x) < 0.1 if spoil == 'noise' else float(x) > 0.95 for x in exact.values()), text
    text = run('sample.py', '--init_from=release', '--start=987%65%7', '--device=cpu')
    assert 'heard 5: 987%65%7 -> 337%65%7 -> 12%65%7 -> 12%7 -> 5%7 -> 5' in text
    assert 'heard V' in run('sample.py', '--init_from=release', '--start=(()())', '--device=cpu')
    assert 'not finished' in run('sample.py', '--init_from=release', '--start=((((()))))', '--think=2', '--device=cpu')
    write_wav('faint.wav', 0.002 * play_text('987%65%7'))
    assert 'asked 987%65%7, wanted 5, heard 5' in run('sample.py', '--init_from=release', '--wav=faint.wav', '--device=cpu')


def test_bench(tmp_path):
    text = run('bench.py', '--device=cpu', '--repeats=1', '--batch_size=2', '--minutes=0.2', '--tokens=32', f"--out={tmp_path / 'bench.json'}")
    rows = {r['what']: r for r in json.loads((tmp_path / 'bench.json').read_text()) if 'what' in r}
    assert rows['scan, 128 x 32 tokens: ssd']['speed'] > 1 and 'skipped' in rows['scan, 128 x 32 tokens: mamba_ssm kernel']
    n = [rows[f'mod, d 128, batch 2: {layer}']['parameters'] for layer in ('Mini-JMamba', 'Transformer', 'LSTM')]
    assert max(n) < 1.02 * min(n) and rows['scorer, 10,000 symbols, clean']['value'] == 100
    assert 'answer to 10 s of sound' in text and 'x Mini-JMamba' in text


def test_mistakes_are_sorted(trained):
    text = run('score.py', f'--out_dir={trained[0]}', '--num_samples=6', '--split=iid', '--errors=True')
    rows = [json.loads(line) for line in (trained[0] / 'errors_iid.jsonl').read_text().splitlines()]
    wrong = round(6 * (1 - float(re.search(r'mirror_iid_em: (.*)', text)[1])))
    assert len(rows) == wrong > 0 and re.search(rf'mirror +iid +{wrong}  ', text) and {'asked', 'wanted', 'heard', 'kind', 'deletions'} <= set(rows[0])
    assert transcribe(read_wav(str(trained[0] / rows[0]['question']))[None]) == [rows[0]['asked']]
    assert transcribe(read_wav(str(trained[0] / rows[0]['answer']))[None]) == [rows[0]['heard']]
    kind = lambda heard, read, brief=None: score.diagnose('mirror', 'ABC', 'ABC', heard, read, brief or heard)['kind']
    assert [kind('ABD', 'ABD'), kind('ABD', 'ABC'), kind('ABBC', 'ABC'), kind('AB', 'ABC', 'ABC'), kind('ABD', 'ABE'), kind('ABC', 'ABC')] == \
        ['reasoning', 'rendering', 'timing', 'timing', 'both', 'unfinished']
    found = score.diagnose('mod', '731%65%7', '81%65%7', '91%65%7', '91%65%7', '91%65%7')
    assert (found['digits'], found['quotient'], found['A < B'], found['borrow']) == (3, 1, False, True) and found['substitutions'] == 1
    found = score.diagnose('bracket', '(()))(', 'X', 'V', 'V', 'V')
    assert (found['length'], found['deepest'], found['first violation']) == (6, 2, 4)
    assert score.edits('ABD', 'XABC') == (0, 1, 1) and score.edits('AAB', 'AB') == (1, 0, 0)


def test_logits_are_read_where_the_tones_are():
    b = make_batch('mirror', 'train', 20, gen())
    config = JMambaConfig(**TINY)
    middle = (torch.arange(b.question.shape[1] // 800) * 800 + 280) / 16000  # a token's windows reach from 240 samples before it to its end
    slot = (middle[None, :, None] >= b.rhythm.start[:, None]).sum(2) - 1
    sounding = (slot >= 0) & (middle < (b.rhythm.start + b.rhythm.length).gather(1, slot.clamp(min=0)))
    symbol = b.asked.gather(1, slot.clamp(min=0)).where(sounding, -1)
    logits = F.one_hot(symbol.where(symbol >= 0, len(SYMBOLS)), len(SYMBOLS) + 1).float()
    class Said:
        def reply(self, question, lengths):
            return None, None, logits
    said = Said()
    said.config = config
    assert score.read_logits(said, b.question, b.lengths, b.rhythm) == [decode(r) for r in b.asked]


def test_spoilt_questions(trained):
    b = make_batch('mirror', 'train', 30, gen())
    asked, spoilt = [decode(r) for r in b.asked], {how: score.spoil_batch(b, how) for how in ('phase', 'noise', 'longer', 'shorter')}
    for how, s in spoilt.items():
        assert (transcribe(s.question) == asked) == (how != 'noise')
    energy = lambda wave: float(wave.square().mean())
    assert energy(spoilt['noise'].question) == pytest.approx(energy(b.question), rel=0.05) and not set(''.join(transcribe(spoilt['noise'].question))) - {'?'}
    assert (spoilt['phase'].question - b.question).abs().mean() > 0.1
    assert (spoilt['longer'].lengths > b.lengths).all() and (spoilt['shorter'].lengths < b.lengths).all()
    before = (trained[0] / 'scores.json').read_bytes()
    assert 'mirror_iid_em: 0.0000' in run('score.py', os.path.join(HERE, 'config/control_noise.py'), f'--out_dir={trained[0]}', '--num_samples=2')
    assert (trained[0] / 'scores.json').read_bytes() == before and 'phase, noise' in run('score.py', '--spoil=x', code=2)


def test_figures_of_a_model(trained, tmp_path):
    import figures
    model, checkpoint = load_checkpoint(str(trained[0]))
    text = run('figures.py', '--what=counting', 'release', f"--out={tmp_path / 'c.png'}")
    assert re.search(r'\nlength 100: the depth can be read off .* below 0 at 9\d\.', text) and (tmp_path / 'c.png').stat().st_size > 9000
    figures.pointer(model, tmp_path / 'p.png')
    assert (tmp_path / 'p.png').stat().st_size > 9000
    b = next(split_batches('mirror', 'iid', 10))
    asked = [decode(r) for r in b.asked]
    for label, (xs, worse) in figures.WORSE.items():  # the mildest is no trouble to the scorer, and nothing changes shape
        mildest = 16000 if 'rate' in label else 1 if label == 'tempo' else 0 if 'shift' in label else xs[0]
        assert transcribe(worse(b, mildest).question) == asked, label
        assert all(len(worse(b, x).question) == 10 for x in xs)
    assert transcribe(figures.replayed(b, tempo=0.8).question) == asked == transcribe(figures.through_file(b, 8000).question)
    assert 'robustness' in run('figures.py', '--what=beauty', trained[0], code=2)
    assert 'not of mirror' in run('figures.py', '--what=counting', trained[0], code=2)


def test_a_question_through_a_pipe_is_answered_when_it_ends(trained, tmp_path):
    write_wav(str(tmp_path / 'q.wav'), torch.cat([torch.zeros(5000), play_text('ABBA'), torch.zeros(9600)]))
    data = bytearray((tmp_path / 'q.wav').read_bytes())
    data[4:8] = data[40:44] = b'\xff' * 4  # as recorders write it, who do not know how long it will be
    p = subprocess.Popen([sys.executable, os.path.join(HERE, 'sample.py'), f'--out_dir={trained[0]}', '--wav=-', f'--sample_dir={tmp_path}'],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=False)
    p.stdin.write(data)
    p.stdin.flush()  # and stays open
    assert b'asked ABBA, wanted ABBA' in p.stdout.readline()
    p.stdin.close()
    assert p.wait() == 0
    with pytest.raises(ValueError, match='standard input'):
        prepare.read_wav_until_silence(io.BytesIO(b'no sound'))


def log_of(folder):
    return [json.loads(line) for line in (folder / 'log.jsonl').read_text().splitlines()]


def test_training_resumes_where_it_stopped(tmp_path):
    whole, halves = tmp_path / 'whole', tmp_path / 'halves'
    flags = [*TRAIN, '--test_samples=0', '--tasks=mirror,bracket,mod', '--aloud=mod,bracket', '--rests=2', '--blind=0.5', '--think=2', '--curriculum=adaptive', '--promote=0']
    run('train.py', *flags, f'--out_dir={whole}')
    run('train.py', *flags, f'--out_dir={halves}', '--max_iters=3')
    run('train.py', *flags, f'--out_dir={halves}', '--init_from=resume')
    a, b = (torch.load(d / 'ckpt.pt', weights_only=True) for d in (whole, halves))
    assert all(torch.equal(a['model'][k], b['model'][k]) for k in a['model'])
    assert a['levels'] == b['levels'] == dict.fromkeys(('mirror', 'bracket', 'mod'), 0.5) and a['wrong'] == b['wrong'] and a['best'] == b['best']
    untimed = lambda d: [{k: v for k, v in r.items() if k != 'seconds'} for r in log_of(d)]
    assert untimed(whole) == untimed(halves) and [r['level']['mod'] for r in log_of(whole) if 'level' in r] == [0, 0.25]


def test_tasks_take_turns_by_shares_or_by_what_is_wrong(tmp_path, monkeypatch):
    keep = lambda n, b: b
    three = ['--tasks=mirror,bracket,mod', '--log_interval=1', '--max_iters=30', '--eval_interval=15', '--batch_size=2', '--eval_samples=2']
    assert train_in_process(monkeypatch, keep, *three, '--mix=1,0,3', '--curriculum=linear', f'--out_dir={tmp_path / "a"}') == 0
    turns = [r['task'] for r in log_of(tmp_path / 'a') if 'task' in r]
    assert 0 < turns.count('mirror') < turns.count('mod') and not turns.count('bracket')
    assert [round(r['level']['mod'], 3) for r in log_of(tmp_path / 'a') if 'level' in r] == [round(2 * 14 / 30, 3), 1]
    monkeypatch.setattr(score, 'evaluate', lambda model, task, *_, **__: {'exact_match': {'mirror': 1.0, 'bracket': 0.5, 'mod': 0.0}[task]})
    assert train_in_process(monkeypatch, keep, *three, '--mix_floor=0.2', f'--out_dir={tmp_path / "b"}') == 0
    assert [r['odds'] for r in log_of(tmp_path / 'b') if 'odds' in r] == [dict(mirror=1, bracket=1, mod=1), dict(mirror=0.2, bracket=0.5, mod=1)]


def test_what_may_be_generated_is_what_is_new(tmp_path, monkeypatch):
    examples = names_of_train(monkeypatch, '--tasks=mirror,bracket,mod', '--aloud=mod,bracket', '--rests=6', '--blind=0.75', '--batch_size=64',
                              '--max_iters=1', f'--out_dir={tmp_path}')['examples']
    s = MiniJMamba(JMambaConfig()).spectrum
    for task in ('mirror', 'bracket', 'mod'):
        (b, new, seen, _), = examples(task)
        asked, wanted = (s.magnitude(s.stft(play(x, b.rhythm, b.question.shape[1]))) for x in (b.asked, b.wanted))
        off = (asked - wanted).abs().amax(2)
        assert off[~new].max() < 0.01 and (off > 0.2)[new].any() == (task != 'mirror') and new.any() == (task != 'mirror')
        assert (seen is None) == (task == 'bracket') and (task == 'bracket' or 20 < (seen < b.question.shape[1]).sum() < 64)


def test_the_examples_of_a_graph_live_as_long_as_it(tmp_path, monkeypatch):
    capture_step = names_of_train(monkeypatch, '--max_iters=1', f'--out_dir={tmp_path}')['capture_step']
    scope, kept = capture_step.__globals__, []
    monkeypatch.setattr(torch.cuda, 'Stream', object)
    monkeypatch.setitem(scope, 'capture', lambda f, generator: (None, None))  # as a graph does, it keeps no hold of what f uses
    examples = scope['examples']

    def watched(task):
        for batch, *told in examples(task):
            kept.append(weakref.ref(batch.question))
            yield batch, *told
    monkeypatch.setitem(scope, 'examples', watched)
    graph = capture_step('mirror')
    assert len(kept) == 1 and kept[0]() is not None
    del graph
    assert kept[0]() is None


def test_two_processes_are_one(tmp_path):
    flags = [*TRAIN, '--test_samples=0', '--tasks=mirror,bracket,mod', '--aloud=mod', '--log_interval=1', '--rests=1,0,2', '--blind=0.5', '--mix=1']
    run('train.py', *flags, f'--out_dir={tmp_path / "one"}')
    p = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', os.path.join(HERE, 'train.py'), *flags,
                        f'--out_dir={tmp_path / "two"}'], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert p.returncode == 0, p.stderr
    one, two = (log_of(tmp_path / d) for d in ('one', 'two'))
    assert len(one) == len(two) == 8 and [r.get('task') for r in one] == [r.get('task') for r in two]
    for a, b in zip(one, two):
        assert 'loss' not in a or b['loss'] == pytest.approx(a['loss'], abs=1e-4)
    a, b = (torch.load(tmp_path / d / 'ckpt.pt', weights_only=True)['model'] for d in ('one', 'two'))
    assert all(torch.allclose(a[k], b[k], atol=1e-3) for k in a)


def test_a_run_does_not_pass_off_an_earlier_one(trained, tmp_path):
    assert 'd_model=32' in run('train.py', *TRAIN, f'--out_dir={trained[0]}', '--init_from=resume', '--d_model=64', code=2)
    assert 'tasks=mirror' in run('train.py', *TRAIN, f'--out_dir={trained[0]}', '--init_from=resume', '--tasks=mod', code=2)
    (tmp_path / 'best.pt').write_bytes(b'of an earlier run')
    # a run that blows up says so, with exit code 1, and saves nothing of it
    text = run('train.py', *TRAIN, f'--out_dir={tmp_path}', '--learning_rate=1e30', '--warmup_iters=0', '--grad_clip=0', code=1)
    assert 'learning_rate' in text and not list(tmp_path.glob('*.pt'))


def names_of_train(monkeypatch, *flags):
    """Run train.py in this process -> its names"""
    monkeypatch.setattr(sys, 'excepthook', sys.excepthook)
    monkeypatch.setattr(sys, 'argv', ['train.py', *TRAIN, '--test_samples=0', *flags])
    return runpy.run_path(os.path.join(HERE, 'train.py'))


def train_in_process(monkeypatch, spoil, *flags):
    """train.py in this process, its n-th training batch changed by spoil(n, batch) -> exit code"""
    made, original = [], prepare.make_batch

    def make(task, split, *args, **more):
        batch = original(task, split, *args, **more)
        return spoil(made.append(0) or len(made), batch) if split == 'train' else batch
    monkeypatch.setattr(prepare, 'make_batch', make)
    try:
        names_of_train(monkeypatch, *flags)
    except SystemExit as e:
        return e.code
    return 0


def test_bad_numbers_never_reach_the_weights(tmp_path, monkeypatch, capsys):
    bad = lambda b: b._replace(question=b.question * math.nan)
    # two bad batches: skipped, counted, and training goes on
    code = train_in_process(monkeypatch, lambda n, b: bad(b) if n in (2, 4) else b, f'--out_dir={tmp_path / "a"}', '--log_interval=1')
    assert code == 0 and [r['skipped'] for r in log_of(tmp_path / 'a') if 'skipped' in r] == [0, 1, 1, 2, 2, 2]
    # five in a row: an end that says what to try, the weights saved last are numbers, and from them it goes on with a lower learning rate
    code = train_in_process(monkeypatch, lambda n, b: bad(b) if 4 <= n <= 8 else b, f'--out_dir={tmp_path / "b"}', '--log_interval=1', '--max_iters=12')
    assert code == 1 and 'learning_rate' in capsys.readouterr().err and torch.load(tmp_path / 'b' / 'ckpt.pt', weights_only=True)['iter_num'] == 3
    before = log_of(tmp_path / 'b')
    code = train_in_process(monkeypatch, lambda n, b: b, f'--out_dir={tmp_path / "b"}', '--log_interval=1', '--init_from=resume', '--learning_rate=5e-4')
    lr = [{r['iter']: r['lr'] for r in rows if 'lr' in r} for rows in (before, log_of(tmp_path / 'b'))]
    assert code == 0 and max(lr[0]) == 7 and lr[1][4] < lr[0][4] / 3
    for d in 'ab':
        weights = torch.load(tmp_path / d / 'ckpt.pt', weights_only=True)['model'].values()
        assert all(w.isfinite().all() for w in weights)


def test_losses_of_degenerate_sounds_are_finite(tmp_path, monkeypatch):
    square = torch.sign(torch.sin(torch.arange(32000) / 3.0))
    sounds = [torch.zeros(32000), torch.ones(32000), square, -torch.ones(32000)]
    spoil = lambda n, b: b._replace(question=sounds[n % 4].expand(4, -1), answer=sounds[n // 4 % 4].expand(4, -1))
    code = train_in_process(monkeypatch, spoil, f'--out_dir={tmp_path}', '--w_wave=1', '--w_stft=1', '--max_iters=16', '--log_interval=1')
    rows = log_of(tmp_path)
    assert code == 0 and rows[-2]['skipped'] == 0 and all(math.isfinite(r['norm']) for r in rows if 'norm' in r)


def train_here(*flags):
    """train.py in a process that has torch loaded already"""
    sys.argv = ['train.py', *flags]
    sys.stdout = sys.stderr = open(os.devnull, 'w')
    runpy.run_path(os.path.join(HERE, 'train.py'))


def test_twenty_kills_change_nothing(tmp_path):
    processes = multiprocessing.get_context('forkserver')
    processes.set_forkserver_preload(['torch', 'scipy.io.wavfile', 'scipy.signal', 'tqdm', 'test_smoke'])
    flags = [*TRAIN, '--test_samples=0', '--eval_interval=2', '--eval_samples=1', '--log_interval=1', '--max_iters=60']
    rng, log, checkpoint = random.Random(0), tmp_path / 'killed' / 'log.jsonl', tmp_path / 'killed' / 'ckpt.pt'

    def start(folder):
        resume = ['--init_from=resume'] if (tmp_path / folder / 'ckpt.pt').exists() else []
        p = processes.Process(target=train_here, args=(*flags, f'--out_dir={tmp_path / folder}', *resume))
        p.start()
        return p
    for _ in range(20):
        before = log.stat().st_size if checkpoint.exists() else 0
        p = start('killed')
        while p.is_alive() and (not log.exists() or log.stat().st_size <= before):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.15))  # it trains: at some moment of the next iterations
        p.kill()
        p.join()
        assert p.exitcode == -signal.SIGKILL
    for folder in ('killed', 'whole'):
        p = start(folder)
        p.join()
        assert p.exitcode == 0
    for name in ('ckpt.pt', 'best.pt'):
        a, b = (torch.load(tmp_path / d / name, weights_only=True) for d in ('whole', 'killed'))
        assert all(torch.equal(a['model'][k], b['model'][k]) for k in a['model']) and a['iter_num'] == b['iter_num']
    assert {'command', 'commit', 'torch'} <= set(a['provenance'])


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    p = subprocess.Popen([sys.executable, os.path.join(HERE, 'train.py'), *TRAIN, '--max_iters=100000', '--eval_interval=100000', f'--out_dir={tmp_path}'],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not p.stdout.readline().startswith('iter '):
        pass
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=60)
    assert p.returncode == 130 and '--init_from=resume' in out and 'Traceback' not in err
    assert torch.load(tmp_path / 'ckpt.pt', weights_only=True)['iter_num'] >= 2


# --- mistakes that a user can make ---

def test_two_thousand_broken_wavs(tmp_path):
    write_wav(str(tmp_path / 'good.wav'), play_text('AB'))
    good, rng, path, read = (tmp_path / 'good.wav').read_bytes(), random.Random(1), str(tmp_path / 'bad.wav'), 0
    before, slowest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for i in range(2000):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            kind, at = rng.randrange(5), rng.randrange(44)
            if kind == 0:
                data[at % len(data)] = rng.randrange(256)
            elif kind == 1:  # sizes, rates, channel counts
                data[at // 4 * 4:at // 4 * 4 + 4] = rng.choice([0, 1, 2 ** 31 - 1, 2 ** 32 - 1, rng.randrange(2 ** 32)]).to_bytes(4, 'little')
            elif kind == 2:
                data[22:24] = rng.choice([0, 3, 255, 65535]).to_bytes(2, 'little')
            elif kind == 3:
                del data[rng.randrange(len(data)):]
            else:
                data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(9)))
            data = data or bytearray(b'R')
        with open(path, 'wb') as f:
            f.write(data)
        t0 = time.time()
        try:
            transcribe(read_wav(path)[None])
            read += 1
        except ValueError as e:
            assert path in str(e) and '\n' not in str(e)
        slowest = max(slowest, time.time() - t0)
    assert 0 < read < 2000 and slowest < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


def test_broken_checkpoints_and_smuggled_code(tmp_path):
    save_checkpoint(str(tmp_path / 'best.pt'), MiniJMamba(JMambaConfig(**TINY)), config={'tasks': 'mirror', 'aloud': ''}, iter_num=0)
    good, rng = (tmp_path / 'best.pt').read_bytes(), random.Random(2)
    for _ in range(100):
        data = bytearray(good)
        for _ in range(20):
            data[rng.choice([rng.randrange(len(data)), rng.randrange(2000), len(data) - 1 - rng.randrange(4000)])] = rng.randrange(256)
        (tmp_path / 'best.pt').write_bytes(data if rng.random() < 0.7 else data[:rng.randrange(len(data))])
        try:
            load_checkpoint(str(tmp_path))
        except ValueError as e:
            assert 'best.pt' in str(e)

    class Smuggled:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'ran'),)
    torch.save({'model': Smuggled()}, tmp_path / 'best.pt')
    with pytest.raises(ValueError, match='not a checkpoint'):
        load_checkpoint(str(tmp_path))
    assert not (tmp_path / 'ran').exists()

def test_bad_files_get_a_sentence(tmp_path, trained):
    good = tmp_path / 'good.wav'
    write_wav(str(good), play_text('ABC'))
    data = good.read_bytes()
    bad = {'missing.wav': None, 'empty.wav': b'', 'text.wav': b'hello, this is no sound at all' * 9, 'cut.wav': data[:len(data) // 2],
           'header.wav': data[:44], 'short.wav': data[:20]}
    for name, content in bad.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            read_wav(str(tmp_path / name))
    run('score.py', tmp_path / 'cut.wav', code=2)
    wavfile.write(tmp_path / 'loud.wav', 44100, 32768 * resample_poly(play_text('ABC').numpy(), 441, 160))
    assert transcribe(read_wav(str(tmp_path / 'loud.wav'))[None]) == ['ABC']  # floats that were never scaled
    wavfile.write(tmp_path / 'slow.wav', 4000, np.zeros(4000, np.int16))
    with pytest.raises(ValueError, match='sample rate'):
        read_wav(str(tmp_path / 'slow.wav'))
    text = run('sample.py', f'--out_dir={trained[0]}', f"--wav={tmp_path / 'missing.wav'}", f"--sample_dir={tmp_path / 'new'}", code=2)
    assert 'no such file' in text and not (tmp_path / 'new').exists()
    write_wav(str(tmp_path / 'silence.wav'), torch.zeros(16000))
    assert 'no tone' in run('sample.py', f'--out_dir={trained[0]}', f"--wav={tmp_path / 'silence.wav'}", code=2)
    assert 'silence' in run('score.py', tmp_path / 'silence.wav')


def test_bad_questions_and_checkpoints_get_a_sentence(tmp_path, trained):
    out = trained[0]
    assert "'z' is not a symbol" in run('sample.py', f'--out_dir={out}', '--start=Az', code=2)
    assert 'at least one symbol' in run('sample.py', f'--out_dir={out}', '--start=', code=2)
    assert 'train.py' in run('sample.py', f'--out_dir={tmp_path}', '--start=A', code=2)
    assert 'train.py' in run('score.py', f'--out_dir={tmp_path}', code=2)
    model, checkpoint = load_checkpoint(str(out))
    checkpoint['model_args']['d_model'] = 64
    torch.save(checkpoint, tmp_path / 'best.pt')
    assert 'best.pt' in run('score.py', f'--out_dir={tmp_path}', code=2)
    (tmp_path / 'best.pt').write_bytes(b'junk')
    with pytest.raises(ValueError, match='not a checkpoint'):
        load_checkpoint(str(tmp_path))
    (tmp_path / 'best.pt').write_bytes(b'')
    with pytest.raises(ValueError, match='not a checkpoint'):
        load_checkpoint(str(tmp_path))
    assert 'num_samples' in run('score.py', f'--out_dir={out}', '--num_samples=0', code=2)
    assert 'ood_length_15' in run('score.py', f'--out_dir={out}', '--split=ood_lenght', code=2)
    (tmp_path / 'file').write_text('')
    for script in ('train.py', 'prepare.py', 'sample.py'):
        flag = 'sample_dir' if script == 'sample.py' else 'out_dir'
        more = [f'--out_dir={out}', '--start=A'] if script == 'sample.py' else ['--max_iters=1'] if script == 'train.py' else []
        assert 'cannot write' in run(script, *more, f"--{flag}={tmp_path / 'file'}", code=2)
    for task, text in (('bracket', 'AB'), ('mod', '12'), ('mod', '5%0'), ('mod', '5%%3'), ('mirror', '')):
        if (task, text) == ('mod', '12'):
            assert solve(task, text) == '12'
        else:
            with pytest.raises(ValueError):
                solve(task, text)
    assert solve('mod', '987%65%7') == '5' and solve('bracket', '()' * 300) == 'V' and solve('mod', str(10 ** 40 + 7) + '%10') == '7'


@pytest.mark.parametrize('flag, says', [('--tasks=mirror,sing', "'sing'"), ('--mix=1,2', "such as 1"), ('--mix=0', 'leave a share'), ('--rests=-1', 'rests takes a whole number'), ('--mix=1e308', "takes 'error'"), ('--tasks=mod --aloud=mod --blind=1 --batch_size=3', 'even number'), ('--curriculum=steep', 'adaptive, linear or none'),
                                        ('--aloud=mirror', 'aloud'), ('--blind=2', 'at least 0 and at most 1'), ('--batch_size=0', 'batch_size must be at least 1'),
                                        ('--init_from=best', 'resume'), ('--dtype=float8', 'bfloat16'), ('--ssd=fast', 'mamba_ssm'), ('--patch=3', 'must divide 40'), ('--patch=0', 'patch must be at least 1'), ('--blind=0.5 --pointer=False', 'pointer'), *([] if torch.cuda.is_available() else [('--ssd=mamba_ssm', 'NVIDIA GPU')]), ('--d_model=33', 'd_model'), ('--device=abacus', 'no device')])
def test_settings_that_cannot_be_get_a_sentence(flag, says, tmp_path, monkeypatch, capsys):
    assert train_in_process(monkeypatch, None, f'--out_dir={tmp_path / "out"}', *flag.split()) == 2
    message = capsys.readouterr().err
    assert says in message and len(message.splitlines()) == 1 and not list(tmp_path.glob('out/*.pt'))


def test_figures_of_runs(tmp_path):
    for name, exact in (('mod_s1', 1.0), ('mod_s2', 0.9), ('mod_direct', 0.5), ('old/mod_s1', 0.25)):
        thought = {'by_passes': {'1': 0.1, '2': 0.5, '4': exact}, 'passes_by_lines': {'1': 1, '3': 2.9}} if exact > 0.5 else {}
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / 'scores.json').write_text(json.dumps({'scores': {'mod': {'iid': {'exact_match': exact, 'n': 20, **thought}}}, **({'seconds': 60} if thought else {})}))
    text = run('figures.py', *(tmp_path / d for d in ('old/mod_s1', 'mod_s1', 'mod_s2', 'mod_direct', 'mod_s1')), f"--out={tmp_path / 'table.png'}")
    assert '| old/mod | 1 | 20 | 25 |  |\n| mod | 2 | 20 | 95 (90) | 60 |\n| mod_direct | 1 | 20 | 50 |  |' in text  # in the order named, each once
    assert (tmp_path / 'table.png').read_bytes()[:4] == b'\x89PNG'
    run('figures.py', '--what=passes', tmp_path / 'mod_s1', f"--out={tmp_path / 'passes.png'}")
    assert (tmp_path / 'passes.png').read_bytes()[:4] == b'\x89PNG'
    assert 'score.py' in run('figures.py', tmp_path / 'nothing', '--what=table', code=2).splitlines()[-1]


def test_saving_is_all_or_nothing(tmp_path):
    model = MiniJMamba(JMambaConfig(**TINY))
    save_checkpoint(str(tmp_path / 'best.pt'), model, config={'tasks': 'mirror', 'aloud': ''}, iter_num=0)
    before = (tmp_path / 'best.pt').read_bytes()
    with pytest.raises(Exception):
        save_checkpoint(str(tmp_path / 'best.pt'), model, config=lambda: 0)  # cannot be pickled
    assert (tmp_path / 'best.pt').read_bytes() == before
    load_checkpoint(str(tmp_path))


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path):
    flags = [*TRAIN, '--test_samples=0', f'--out_dir={tmp_path}']
    run('train.py', *flags, '--max_iters=3')
    before = (tmp_path / 'ckpt.pt').read_bytes()
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))
    p = subprocess.run([sys.executable, os.path.join(HERE, 'train.py'), *flags, '--init_from=resume'], capture_output=True, text=True, preexec_fn=limit)
    assert p.returncode == 1 and 'cannot write' in p.stderr and 'Traceback' not in p.stderr, p.stderr
    assert (tmp_path / 'ckpt.pt').read_bytes() == before and not list(tmp_path.glob('*.tmp'))


@pytest.fixture
def settings():
    return {'__file__': os.path.join(HERE, 'train.py'), '__doc__': 'A script.', 'batch_size': 16, 'learning_rate': 1e-3,
            'compile': False, 'out_dir': 'out', 'json': json}


def test_configurator_takes(settings, tmp_path):
    path = tmp_path / 'c.py'
    path.write_text('batch_size = 4 * 8\nlearning_rate = 1\n')
    configure(settings, [str(path), '--compile=true', '--out_dir=a=b', '--batch_size=64'])
    assert (settings['batch_size'], settings['learning_rate'], settings['compile'], settings['out_dir']) == (64, 1.0, True, 'a=b')
    assert type(settings['learning_rate']) is float


@pytest.mark.parametrize('flag, says', [('--batchsize=3', "did you mean 'batch_size'"), ('--batch_size=3.5', 'an integer'), ('--batch_size', '--batch_size=value'),
                                        ('--compile=1', 'true or false'), ('--learning_rate=fast', 'a number'), ('--json=3', 'no setting'),
                                        ('nowhere.py', 'cannot read'), ('compile = 1', 'true or false'), ('batch_sise = 1', "did you mean 'batch_size'"),
                                        ('out_dir = 3', 'text'), ('x = ', 'SyntaxError'), ('import math\nlearning_rate = math.tau * 1j', 'a number'), ('batch_size = True', 'an integer')])
def test_configurator_refuses(settings, tmp_path, capsys, flag, says):
    if ' = ' in flag:
        (tmp_path / 'c.py').write_text(flag + '\n')
        flag = str(tmp_path / 'c.py')
    with pytest.raises(SystemExit) as e:
        configure(settings, [flag])
    message = capsys.readouterr().err
    assert e.value.code == 2 and says in message and len(message.splitlines()) == 1


def test_help_lists_settings_with_their_comments(settings, capsys):
    with pytest.raises(SystemExit) as e:
        configure(settings, ['--help'])
    text = capsys.readouterr().out
    assert e.value.code == 0 and re.search(r'--compile=False +# torch.compile', text) and 'json' not in text

"""
What it costs, side by side.

$ python bench.py      # prints a table and writes bench.json
"""
import json
import os
import platform
import statistics
import time

import torch

from configurator import configure, fail
from model import JMambaConfig, MiniJMamba
from prepare import SAMPLE_RATE, SYMBOLS, decode, make_rhythm, max_samples, play
from score import edit_distance, find_tones, transcribe

out = 'bench.json'  # where the numbers go
repeats = 10        # timed runs of each line, after a warm-up; their median counts
configure(globals())
rows = []


def measure(f):
    """Median seconds of f()"""
    f()
    times = []
    for _ in range(repeats):
        t0 = time.perf_counter()
        f()
        times.append(time.perf_counter() - t0)
    return statistics.median(times)


def report(what, value, unit):
    rows.append({'what': what, 'value': value, 'unit': unit})
    print(f"{what:56} {value:12,.5g} {unit}", flush=True)


print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")

# --- audio, on one core ---
threads = torch.get_num_threads()
torch.set_num_threads(1)
g = torch.Generator().manual_seed(0)
symbols, rhythm = torch.randint(len(SYMBOLS), (32, 10), generator=g), make_rhythm(32, 10, g)
wave = play(symbols, rhythm, max_samples(10))
audio = wave.numel() / SAMPLE_RATE
report('synthesis, one core', audio / measure(lambda: play(symbols, rhythm, wave.shape[1])), 'times real time')
report('scoring, one core', audio / measure(lambda: find_tones(wave)), 'times real time')
torch.set_num_threads(threads)

# --- streaming ---
model = MiniJMamba(JMambaConfig()).eval()
with torch.no_grad():
    state = model.step(torch.zeros(1, model.config.token))[2]
    seconds = measure(lambda: model.step(torch.zeros(1, model.config.token), state))
report('encoder, one token (50 ms of sound) at a time', seconds * 1000, 'ms a token')

# --- the scorer against white noise; the power of the signal is that of its tones, the gaps left out ---
symbols = torch.randint(len(SYMBOLS), (500, 20), generator=g)
wave = play(symbols, make_rhythm(500, 20, g), max_samples(20))
wanted, power = [decode(s) for s in symbols], wave[wave != 0].square().mean()
for snr in (None, 10, 0, -5, -10):
    noise = 0 if snr is None else (power * 10 ** (-snr / 10)).sqrt() * torch.randn(wave.shape, generator=g)
    wrong = sum(edit_distance(h, w) for h, w in zip(transcribe(wave + noise), wanted))
    report(f"scorer, 10,000 symbols, {'clean' if snr is None else f'{snr} dB signal to noise'}", 100 - wrong / 100, '% right')

try:
    with open(out, 'w') as f:
        json.dump(rows, f, indent=1)
except OSError as e:
    fail(f"cannot write {out}: {e.strerror}")

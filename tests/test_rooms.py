"""
Rooms that training never had: shoe boxes, by image sources (pyroomacoustics).

$ python -m pytest tests/test_rooms.py --long
$ QUESTIONS=1000 python -m pytest -s tests/test_rooms.py --long    # and prints what it found
"""
import os

import numpy as np
import pytest
import torch
from scipy.signal import fftconvolve

from audio.tune import prepared
from checkpoint import load_checkpoint
from prepare import SAMPLE_RATE, split_batches
from tests.helpers import texts_of
from think import converse
from transcribe import transcribe

rooms = pytest.importorskip('pyroomacoustics')

N = int(os.environ.get('QUESTIONS', 20))


def response(seconds, random):
    """Of a room of 3 to 8 m, the microphone at 0.5 to 2 m from the source, in which a sound is 60
    dB down after so many seconds -> from the direct sound on"""
    size = random.uniform((3, 3, 2.3), (8, 8, 3.5))
    absorption, order = rooms.inverse_sabine(seconds, size)
    room = rooms.ShoeBox(size, fs=SAMPLE_RATE, materials=rooms.Material(absorption),
                         max_order=min(order, 30))
    while True:
        source, microphone = random.uniform(0.3, size - 0.3, (2, 3))
        if 0.5 <= np.linalg.norm(source - microphone) <= 2:
            break
    room.add_source(source)
    room.add_microphone(microphone)
    room.compute_rir()
    heard = room.rir[0][0]
    direct = np.abs(heard) > 0.3 * np.abs(heard).max()
    return heard[max(0, int(direct.argmax()) - 20):]


def in_rooms(waves, seconds, random):
    out = []
    for wave in waves.numpy():
        wet = fftconvolve(wave, response(seconds, random))[:len(wave)]
        out.append(0.6 * wet / np.abs(wet).max())
    return torch.tensor(np.array(out), dtype=torch.float32)


LEAST = {0.2: 0.85, 0.4: 0.75, 0.8: 0.4}  # share of right answers, by seconds of reverberation
QUICK = 'mirror', 0.4
CASES = [(task, seconds) for task in ('mirror', 'bracket', 'mod') for seconds in LEAST]


@pytest.mark.parametrize('task, seconds', [
    pytest.param(*case, marks=[] if case == QUICK else [pytest.mark.long]) for case in CASES
])
def test_the_release_in_rooms(task, seconds):
    model, checkpoint = load_checkpoint(init_from='release')
    think = 64 if task in checkpoint['config']['aloud'].split(',') else 1
    random = np.random.default_rng(0)
    right = heard = 0
    for b in split_batches(task, 'iid', N):
        question = in_rooms(b.question, seconds, random)
        answers, _ = converse(model, *prepared(question, b.lengths), think)
        pairs = zip(transcribe(answers[-1]), texts_of(b.wanted), strict=True)
        right += sum(x == y for x, y in pairs)
        pairs = zip(transcribe(question), texts_of(b.asked), strict=True)
        heard += sum(x == y for x, y in pairs)
    print(f"{task}, {seconds} s: {right / N:.1%} right; the scorer hears {heard / N:.1%} of the "
          "questions themselves")
    assert right / N >= LEAST[seconds]

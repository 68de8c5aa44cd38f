"""
A calculator that a model may call between passes: it hears what the model has played, and where
that is a call (see tasks/calculator.py), it plays the remainder in the place of the division.
"""
import torch

from prepare import SAMPLE_RATE, make_rhythm, play_plainly
from tasks import REST, decode
from tasks.calculator import tool
from transcribe import find_tones

MARGIN = 0.015  # seconds by which a tone may be longer, at either end, than the scorer finds it


def answer_calls(waves):
    """Waveforms (B, S) that a model has played -> what it hears next, (B, S)"""
    tones = find_tones(waves)
    waves = waves.clone()
    for i in range(len(waves)):
        mine = tones.clip == i
        symbols, start, length = (x[mine] for x in (tones.symbol, tones.start, tones.length))
        try:
            row = torch.tensor(tool(decode(symbols)), device=waves.device)  # (N,)
        except ValueError:  # no call
            continue
        new = row != symbols
        begin = ((start - MARGIN).clamp(min=0) * SAMPLE_RATE).long()
        end = ((start + length + MARGIN) * SAMPLE_RATE).long()
        for k in new.nonzero()[:, 0]:
            waves[i, begin[k]:end[k]] = 0
        # A tone of the calculator sounds when the one did that it takes the place of.
        generator = torch.Generator(waves.device).manual_seed(0)  # the same call sounds the same
        rhythm = make_rhythm(1, len(row), generator, waves.device)
        rhythm = rhythm._replace(start=start[None].float(), length=length[None].float())
        row = torch.where(new, row, REST)
        waves[i] += play_plainly(row[None], rhythm, waves.shape[1])[0]
    return waves

"""
Every picture. So far one: spectrograms with the symbols written at their tones.

$ python figures.py out/mirror/samples/000_question.wav out/mirror/samples/000_answer.wav --out=spectrogram.png
"""
import sys

import numpy as np
from matplotlib.figure import Figure

from prepare import SAMPLE_RATE, decode, read_wav
from score import find_tones


def spectrogram(rows, path):
    """Draw (title, waveform (S,)) rows under one another to a PNG, with what the scorer hears written at the tones (up to
    20 seconds: beyond that nobody could read it)"""
    longest = max(len(wave) for _, wave in rows) / SAMPLE_RATE
    fig = Figure(figsize=(min(16, max(9, 3 * longest)), 0.6 + 2.7 * len(rows)), layout='constrained')
    axes = fig.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (title, wave) in zip(axes, rows):
        tones = find_tones(wave[None])
        top = max([3200.0, *tones.hertz.tolist()]) + 400
        padded = np.pad(wave.numpy(), (256, 512))  # the middle of the first window is time 0
        with np.errstate(divide='ignore'):  # silence is -inf dB
            *_, image = ax.specgram(padded, NFFT=512, Fs=SAMPLE_RATE, noverlap=432, vmin=-100, vmax=-25, cmap='magma',
                                    xextent=(0, (len(wave) + 256) / SAMPLE_RATE))
        for s, start, length, hertz in [] if longest > 20 else zip(*[t.tolist() for t in (tones.symbol, tones.start, tones.length, tones.hertz)]):
            ax.text(start + length / 2, hertz + 90, decode([s]), color='white', weight='bold', ha='center', va='bottom')
        ax.set(ylim=(0, top), xlim=(0, longest), ylabel='frequency (Hz)', facecolor='black')
        ax.set_title(title if len(title) < 90 else title[:87] + '...', loc='left', fontsize=10)
    axes[-1].set_xlabel('time (s)')
    fig.colorbar(image, ax=list(axes), label='power (dB)', fraction=0.05, pad=0.01)
    fig.savefig(path, dpi=110)


if __name__ == '__main__':
    from configurator import configure, fail
    out = 'spectrogram.png'  # the picture to write
    wavs = [a for a in sys.argv[1:] if not a.startswith('-')]
    configure(globals(), [a for a in sys.argv[1:] if a.startswith('-')])
    if not wavs:
        fail("name the WAV files to draw")
    try:
        spectrogram([(w, read_wav(w)) for w in wavs], out)
    except ValueError as e:
        fail(e)
    except OSError as e:
        fail(f"cannot write {out}: {e.strerror}")

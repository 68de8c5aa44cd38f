"""
Sound files in and out.
"""
import io
import os
import re
import struct
import warnings
from fractions import Fraction

import numpy as np
import torch
from scipy.io import wavfile

SAMPLE_RATE = 16000
RATES = (6500, 384000)  # sample rates of files that can hold these tones, lowest and highest


def fresh_folder(folder, pattern):
    """Make a folder, or remove the files whose whole name fits the pattern: those of an earlier,
    perhaps larger set"""
    os.makedirs(folder, exist_ok=True)
    for name in os.listdir(folder):
        if re.fullmatch(pattern, name):
            os.remove(os.path.join(folder, name))


def write_wav(path, wave):
    """(samples,) in -1..1 -> 16-bit PCM"""
    wave = np.asarray(wave, dtype=np.float64)
    wavfile.write(path, SAMPLE_RATE, (wave.clip(-1, 1) * 32767).round().astype(np.int16))


def read_wav(path, name=None):
    """A WAV file, by its path or open for reading (8, 16, 24, 32-bit PCM or float, any channels,
    any rate from 6.5 kHz) -> (samples,) float32 at 16 kHz, the mean of its channels. ValueError
    says what is wrong with the file."""
    name = name or path
    try:
        with warnings.catch_warnings():
            kind = wavfile.WavFileWarning
            warnings.filterwarnings('ignore', category=kind)
            warnings.filterwarnings('error', message='.*EOF.*', category=kind)
            rate, x = wavfile.read(path)
    except FileNotFoundError:
        raise ValueError(f"{name}: there is no such file") from None
    except OSError as e:
        raise ValueError(f"{name}: cannot be read: {e.strerror or e}") from None
    except Exception:  # scipy raises a dozen kinds on a broken header
        raise ValueError(f"{name}: not a whole WAV file of PCM or float samples") from None
    if x.size == 0:
        raise ValueError(f"{name}: the WAV file has no samples")
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"{name}: a sample rate of {rate} Hz cannot hold these tones; it must be "
                         f"{RATES[0]:,} to {RATES[1]:,} Hz")

    full_scale = {'u': 128, 'i': 2.0 ** (8 * x.dtype.itemsize - 1), 'f': 1}[x.dtype.kind]
    middle = 128 if x.dtype.kind == 'u' else 0
    x = (x.astype(np.float64) - middle) / full_scale
    if not (np.abs(x) < 1e9).all():
        raise ValueError(f"{name}: the WAV file has samples that are no sound: not numbers, or "
                         "huge")
    x = x.reshape(len(x), -1).mean(1)
    x /= max(1.0, np.abs(x).max())  # floats that were never scaled to -1..1
    if rate != SAMPLE_RATE:
        from scipy.signal import resample_poly  # half a second to import, and seldom needed
        # Odd rates come out a millionth off pitch; exact ones would need a huge filter.
        ratio = Fraction(SAMPLE_RATE, rate).limit_denominator(1000)
        x = resample_poly(x, ratio.numerator, ratio.denominator)
    return torch.from_numpy(x.astype(np.float32))


def read_wav_until_silence(file, name='standard input', silence=0.4):
    """A WAV from a pipe -> (samples,) as soon as a sound has been followed by so many seconds of
    silence, or at its end. What its header says of its length, which a recorder cannot know,
    does not matter."""
    # The header: chunks up to the one that holds the samples.
    form, chunk = b'', file.read(12)
    if chunk[:4] + chunk[8:] != b'RIFFWAVE':
        raise ValueError(f"{name}: not a WAV file")
    while (chunk := file.read(8))[:4] != b'data':
        size = int.from_bytes(chunk[4:], 'little')
        if len(chunk) < 8 or size > 2 ** 16:
            raise ValueError(f"{name}: not a whole WAV file of PCM or float samples")
        content = file.read(size + size % 2)
        if chunk[:4] == b'fmt ':
            form = content
    rate = int.from_bytes(form[4:8], 'little')
    frame = int.from_bytes(form[12:14], 'little')  # bytes of all channels at one moment
    if not RATES[0] <= rate <= RATES[1] or not frame:
        raise ValueError(f"{name}: its header names no rate or size of samples that are audio")

    def wave_of(data):
        """Bytes of samples -> (samples,), by way of a WAV file with a true header"""
        head = struct.pack('<8sI', b'WAVEfmt ', len(form)) + form
        head += struct.pack('<4sI', b'data', len(data))
        whole = struct.pack('<4sI', b'RIFF', len(head) + len(data)) + head + data
        return read_wav(io.BytesIO(whole), name)

    # The samples, 50 ms at a time.
    data, loudest, quiet = b'', 0.0, 0.0
    while quiet < silence:
        block = file.read(rate // 20 * frame)
        block = block[:len(block) // frame * frame]
        if not block:
            break
        data += block
        level = float(wave_of(block).square().mean().sqrt())
        loudest = max(loudest, level)
        if loudest > 0.003 and level < 0.1 * loudest:
            quiet += len(block) / frame / rate
        else:
            quiet = 0.0
    return wave_of(data)

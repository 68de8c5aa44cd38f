"""
Sound files in and out.
"""
import io
import struct
from fractions import Fraction

import numpy as np
import torch
from scipy.io import wavfile

from audio import SAMPLE_RATE

RATES = (6500, 384000)  # sample rates of files that can hold these tones, lowest and highest


def write_wav(path, wave):
    """(samples,) in -1..1 -> 16-bit PCM, in a file of this path or in an open one"""
    wave = np.asarray(wave, dtype=np.float64)
    wavfile.write(path, SAMPLE_RATE, (wave.clip(-1, 1) * 32767).round().astype(np.int16))


STREAM_BLOCK = SAMPLE_RATE // 20  # samples of a stream that are heard at once: 50 ms
STREAMED = 0, 0x7fffffff, 0xffffffff  # what recorders write that do not know the length
# How files begin that are no WAV files. soundfile reads the first five.
FORMATS = {
    b'fLaC': 'FLAC', b'OggS': 'OGG', b'ID3': 'MP3', b'FORM': 'AIFF', b'caff': 'CAF',
    b'#!AMR': 'AMR', b'\x1aE\xdf\xa3': 'WebM', b'0&\xb2u': 'WMA', b'MThd': 'MIDI',
}


def format_of(data):
    """What a file that begins with these bytes is called; '' if that is not known"""
    if data[:4] in (b'RIFF', b'RF64') and data[8:12] == b'WAVE':
        return 'WAV'
    if data[4:8] == b'ftyp':
        return 'M4A or MP4'
    if data[:1] == b'\xff' and data[1:2] >= b'\xe0':
        return 'AAC' if data[1] & 6 == 0 else 'MP3'
    return ''.join(kind for start, kind in FORMATS.items() if data.startswith(start))


def read_header(file, name):
    """A WAV file, open for reading, up to its samples -> its format chunk, and of how many bytes of
    samples it speaks"""
    form, chunk = b'', file.read(12)
    if format_of(chunk) != 'WAV':
        raise ValueError(f"{name}: not a WAV file")
    while (chunk := file.read(8))[:4] != b'data':
        size = int.from_bytes(chunk[4:], 'little')
        if len(chunk) < 8 or size > 2 ** 20:
            raise ValueError(f"{name}: not a whole WAV file")
        content = file.read(size + size % 2)
        if chunk[:4] == b'fmt ':
            form = content
    return form, int.from_bytes(chunk[4:], 'little')


def wav_of(form, samples):
    """A format chunk and bytes of samples -> a WAV file with a true header"""
    head = struct.pack('<8sI', b'WAVEfmt ', len(form)) + form
    head += struct.pack('<4sI', b'data', len(samples))
    return struct.pack('<4sI', b'RIFF', len(head) + len(samples)) + head + samples


def decode(data, name):
    """A file of any kind as bytes -> its samples (samples, channels) as float64, full scale 1, and
    their rate. A WAV file's header may be that of a stream."""
    kind = format_of(data)
    if kind == 'WAV':
        file = io.BytesIO(data)
        form, size = read_header(file, name)
        samples = file.read()
        if size not in STREAMED and size > len(samples):
            raise ValueError(f"{name}: not a whole WAV file: it ends before its samples do")
        samples = samples if size in STREAMED else samples[:size]
        if not samples:
            raise ValueError(f"{name}: the WAV file has no samples")
        data = wav_of(form, samples)
    try:
        import soundfile
    except ImportError:
        soundfile = None
    try:
        if soundfile:
            return soundfile.read(io.BytesIO(data), always_2d=True)
        rate, x = wavfile.read(io.BytesIO(data))
    except Exception:  # of a dozen kinds, on a broken header
        kind = f"{kind} file of a kind" if kind else 'file'
        hint = '' if soundfile else " without soundfile (pip install soundfile)"
        raise ValueError(f"{name}: this {kind} cannot be read{hint}; make it a WAV file of PCM or "
                         "float samples") from None
    full_scale = {'u': 128, 'i': 2.0 ** (8 * x.dtype.itemsize - 1), 'f': 1}[x.dtype.kind]
    middle = 128 if x.dtype.kind == 'u' else 0
    x = (x.astype(np.float64) - middle) / full_scale
    return x.reshape(len(x), -1), rate


def to_mono(x):
    """(samples, channels) -> (samples,): the mean, or where channels cancel, the loudest"""
    mean = x.mean(1)
    power = np.square(x).mean(0)
    return x[:, power.argmax()] if np.square(mean).mean() < 0.05 * power.max() else mean


def read_wav(path, name=None):
    """A sound file, by its path or open for reading (WAV of any kind and rate from 6.5 kHz; with
    soundfile also FLAC, OGG, MP3, ...) -> (samples,) float32 at 16 kHz. ValueError says what is
    wrong with the file."""
    name = name or path
    try:
        file = open(path, 'rb') if isinstance(path, str) else path
        with file:
            data = file.read()
    except FileNotFoundError:
        raise ValueError(f"{name}: there is no such file") from None
    except OSError as e:
        raise ValueError(f"{name}: cannot be read: {e.strerror or e}") from None
    x, rate = decode(data, name)
    if x.size == 0:
        raise ValueError(f"{name}: the file has no samples")
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"{name}: a sample rate of {rate} Hz cannot hold these tones; it must be "
                         f"{RATES[0]:,} to {RATES[1]:,} Hz")
    if not (np.abs(x) < 1e9).all():
        raise ValueError(f"{name}: the WAV file has samples that are no sound: not numbers, or "
                         "huge")
    x = to_mono(x)
    x /= max(1.0, np.abs(x).max())  # floats that were never scaled to -1..1
    if rate != SAMPLE_RATE:
        from scipy.signal import resample_poly  # half a second to import, and seldom needed
        # Odd rates come out a millionth off pitch; exact ones would need a huge filter.
        ratio = Fraction(SAMPLE_RATE, rate).limit_denominator(1000)
        x = resample_poly(x, ratio.numerator, ratio.denominator)
    return torch.from_numpy(x.astype(np.float32))


def read_stream(file, name='standard input'):
    """A WAV from a pipe -> blocks (about STREAM_BLOCK,) float32 at 16 kHz, as they come. What its
    header says of its length, which a recorder cannot know, does not matter."""
    form, _ = read_header(file, name)
    rate = int.from_bytes(form[4:8], 'little')
    frame = int.from_bytes(form[12:14], 'little')  # bytes of all channels at one moment
    if not RATES[0] <= rate <= RATES[1] or not frame:
        raise ValueError(f"{name}: its header names no rate or size of samples that are audio")
    ratio = Fraction(SAMPLE_RATE, rate).limit_denominator(1000)
    up, down = ratio.numerator, ratio.denominator
    periods = max(1, round(STREAM_BLOCK / up))
    n, m = periods * down, periods * up  # samples of a block, before and after
    recent = np.zeros(3 * n)
    data = b'not read yet'
    while data:
        data = file.read(n * frame)
        data = data[:len(data) // frame * frame]
        block = np.zeros(n)  # and once more after the end, for what a filter still holds
        if data:
            x, _ = decode(wav_of(form, data), name)
            block[:len(x)] = to_mono(x)
        if rate != SAMPLE_RATE:
            # A resampling filter reaches into the blocks on either side.
            from scipy.signal import resample_poly
            recent = np.concatenate([recent[n:], block])
            block = resample_poly(recent, up, down)[m:2 * m]
        yield torch.from_numpy(block.astype(np.float32))

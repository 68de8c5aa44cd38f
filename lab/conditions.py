"""
How a test's questions are heard. Controls show what the answers depend on; rooms, players,
instruments and telephones make worse sound of tones. SOUNDS has the names of all; 'real' is what
training with sound = 'real' hears.

Each function takes a prepare.Batch b, and perhaps how much of it, and gives the batch back with
other questions. Random numbers depend on how many questions there are, and on nothing else.
"""
import io
import math

import numpy as np
import torch
import torch.nn.functional as F

from prepare import BLOCK, LOUDNESS, SAMPLE_RATE, TONE_RMS, gain, play


def white(b, *shape):
    """White noise of deviation 1, as long as the questions (B, S) unless a shape is given"""
    generator = torch.Generator().manual_seed(len(b.asked))
    noise = torch.randn(shape or b.question.shape, generator=generator)
    return noise.to(b.question.device)


def uniform(b, *shape):
    """Numbers from 0 to 1"""
    generator = torch.Generator().manual_seed(len(b.asked))
    return torch.rand(shape, generator=generator).to(b.question.device)


def add(b, sound):
    return b._replace(question=b.question + sound)


# --- controls ---

def other_phases(b):
    n_samples = b.question.shape[1]
    phase = 2 * math.pi * uniform(b, *b.asked.shape)
    noise = b.question - play(b.asked, b.rhythm, n_samples)
    tones = play(b.asked, b.rhythm._replace(phase=phase), n_samples)
    return b._replace(question=noise + tones)


def noise_for_tones(b):
    """Noise of the same energy, over 5 ms each, where tones were: only their rhythm can be heard"""
    energy = F.avg_pool1d(b.question.square()[:, None], 81, 1, 40)[:, 0]
    return b._replace(question=energy.sqrt() * white(b))


def longer(b):
    """Half a second of silence behind question and answer"""
    n = SAMPLE_RATE // 2
    return b._replace(
        question=F.pad(b.question, (0, n)),
        answer=F.pad(b.answer, (0, n)),
        lengths=b.lengths + n,
    )


def shorter(b):
    """Nothing behind the last tone"""
    ends = torch.where(b.asked >= 0, b.rhythm.start + b.rhythm.length, 0).amax(1)
    return b._replace(lengths=(ends * SAMPLE_RATE).long())


# --- noise, rooms, what is recorded with ---

def white_noise(b, db):
    """The power of the tones is so many dB over that of the noise."""
    return add(b, TONE_RMS * gain(-db) * white(b))


def pink_noise(b, db):
    """Noise of as much power in each octave"""
    spectrum = torch.fft.rfft(white(b))
    bins = torch.arange(spectrum.shape[1], device=spectrum.device).clamp(min=1)
    noise = torch.fft.irfft(spectrum / bins.sqrt(), n=b.question.shape[1])
    return add(b, TONE_RMS * gain(-db) * noise / noise.std())


def echo(b, seconds):
    """Decaying noise after the direct sound, 60 dB down after so many seconds; another for each
    question. As in a room, the longer it lasts, the louder it is in all: 6 dB under the direct
    sound at 0.4 s."""
    n = round(seconds * SAMPLE_RATE)
    decay = 10 ** (-3 * torch.arange(n, device=b.question.device) / n)
    tail = white(b, len(b.question), n) * decay
    tail *= 0.5 * (seconds / 0.4) ** 0.5 / tail.norm(dim=1, keepdim=True)
    tail[:, 0] = 1  # the direct sound
    S = b.question.shape[1]
    spectrum = torch.fft.rfft(b.question, S + n) * torch.fft.rfft(tail, S + n)
    wet = torch.fft.irfft(spectrum, S + n)
    return b._replace(question=wet[:, :S])


def clipped(b, share):
    """Clipped at a share of a tone of middle loudness, and played as loud as before"""
    question = (b.question / (LOUDNESS * share)).clamp(-1, 1)
    return b._replace(question=LOUDNESS * question)


def from_numpy(b, waves):
    """The batch with waveforms (B, any) that NumPy or SciPy has made as its questions"""
    question = torch.from_numpy(waves).float()
    return b._replace(question=question.to(b.question.device))


def telephone(b, high):
    """Only what lies between 300 Hz and `high`"""
    from scipy.signal import butter, sosfilt  # slow to import
    sections = butter(6, (300, high), 'bandpass', fs=SAMPLE_RATE, output='sos')
    return from_numpy(b, sosfilt(sections, b.question.cpu().numpy()))


def file_rate(b, rate):
    """As read from a file of another sample rate"""
    from scipy.signal import resample_poly
    rate = int(rate)
    waves = b.question.cpu().double().numpy()
    there = resample_poly(waves, rate, SAMPLE_RATE, axis=1)
    back = resample_poly(there, SAMPLE_RATE, rate, axis=1)
    return from_numpy(b, back[:, :waves.shape[1]])


def mu_law(b):
    """8 kHz in 8 bits, as telephones send it (ITU-T G.711)"""
    b = file_rate(b, 8000)
    x = b.question.clamp(-1, 1)
    code = x.sign() * torch.log1p(255 * x.abs()) / math.log(256)
    code = (code * 128).round() / 128
    sound = code.sign() * torch.expm1(code.abs() * math.log(256)) / 255
    return b._replace(question=sound)


def mp3(b, kbit):
    """As an MP3 of so many kbit/s, in which everything comes a little later"""
    import soundfile
    level = (160 - kbit) / (160 - 8)  # of compression: 160 kbit/s is the most at this rate
    waves = []
    for wave in b.question.cpu().numpy():
        with io.BytesIO() as file:
            soundfile.write(file, wave, SAMPLE_RATE, format='MP3', compression_level=level,
                            bitrate_mode='CONSTANT')
            file.seek(0)
            waves.append(soundfile.read(file, dtype='float32')[0])
    more = len(waves[0]) - b.question.shape[1]
    return from_numpy(b, np.stack(waves))._replace(lengths=b.lengths + more)


def hum(b, hertz):
    """A sine at 0.1 of full scale"""
    seconds = torch.arange(b.question.shape[1], device=b.question.device) / SAMPLE_RATE
    return add(b, 0.1 * torch.sin(2 * math.pi * hertz * seconds))


def clicks(b, a_second):
    there = uniform(b, *b.question.shape) < a_second / SAMPLE_RATE
    return add(b, there * white(b).sign())


# --- players and instruments ---

def by_player(b, tempo=1, gap=None, uneven=0, off=0, each=0, loudness=0, overtones=()):
    """The same questions by another player, in faint noise

    tempo      times as fast
    gap        seconds of silence between tones, at tempo 1
    uneven     share by which each symbol may be longer or shorter
    off        hertz by which all tones are off pitch
    each       hertz by which each tone may be off for itself
    loudness   dB by which each tone may be louder or quieter
    overtones  amplitudes of the second harmonic, the third, ... beside a first of 1"""
    r = b.rhythm
    spread = 2 * uniform(b, 3, *r.start.shape) - 1
    silence = r.end - r.start - r.length
    if gap is not None:
        silence = torch.full_like(silence, gap)
    slower = (1 + uneven * spread[0]) / tempo
    slot = (r.length + silence) * slower  # seconds
    end = slot.cumsum(1)
    rhythm = r._replace(
        start=end - slot,
        length=r.length * slower,
        end=end,
        detune=r.detune + off + each * spread[1],
        amplitude=r.amplitude * gain(loudness * spread[2]),
        overtones=torch.tensor(overtones, device=end.device).expand(len(end), -1),
    )
    n_samples = math.ceil(float(end.amax()) * SAMPLE_RATE / BLOCK) * BLOCK
    last = torch.where(b.asked >= 0, end, 0).amax(1)
    b = b._replace(
        question=play(b.asked, rhythm, n_samples),
        lengths=(last * SAMPLE_RATE).long(),
        rhythm=rhythm,
    )
    return add(b, 0.015 * white(b))


def louder(b, db):
    return b._replace(question=b.question * gain(db))


# --- their names ---

# Amplitudes of the second harmonic, the third, ...
INSTRUMENTS = {
    'square': [1 / k if k % 2 else 0.0 for k in range(2, 16)],
    'sawtooth': [1 / k for k in range(2, 16)],
    'piano': [gain(-6 * k) for k in range(1, 6)],
}
# Kinds of sound; all others of VALUES are parameters of by_player.
KINDS = {
    'phase': other_phases,
    'noise': noise_for_tones,
    'longer': longer,
    'shorter': shorter,
    'white': white_noise,
    'pink': pink_noise,
    'echo': echo,
    'clipped': clipped,
    'telephone': telephone,
    'rate': file_rate,
    'mulaw': mu_law,
    'mp3': mp3,
    'offset': add,
    'hum': hum,
    'clicks': clicks,
    'volume': louder,
}
# How much of a kind: what is after the _ in a sound's name, from good to bad
VALUES = {
    'white': '20 10 5 0 -5 -10',
    'pink': '20 10 5 0 -5',
    'echo': '0.1 0.2 0.4 0.8',
    'tempo': '1.6 1.5 1.25 1 0.8 0.6 0.5',
    'gap': '0.5 0.2 0.05 0.03 0.015',
    'uneven': '0.1 0.25',
    'off': '-45 -40 -20 0 20 40 45',
    'each': '0 10 20',
    'loudness': '0 3 6',
    'volume': '0 -10 -20 -26',
    'clipped': '0.5 0.2 0.1 0.05',
    'telephone': '5000 3400 3000',
    'rate': '48000 44100 22050 11025 8000',
    'mp3': '32',
    'offset': '0.1 0.2',
    'hum': '50 60',
    'clicks': '1 5',
}
SOUNDS = ['clean', 'real', 'phase', 'noise', 'longer', 'shorter', 'mulaw', *INSTRUMENTS]
SOUNDS += [f'{kind}_{x}' for kind in VALUES for x in VALUES[kind].split()]


def as_heard(b, sound):
    """A batch and one of SOUNDS -> the batch with its questions as they are heard so"""
    kind, _, value = sound.partition('_')
    if kind in ('clean', 'real'):  # prepare.make_batch makes them
        return b
    if kind in INSTRUMENTS:
        return by_player(b, overtones=INSTRUMENTS[kind])
    if kind not in KINDS:
        return by_player(b, **{kind: float(value)})
    return KINDS[kind](b, float(value)) if value else KINDS[kind](b)

"""
The sound: a tone synthesizer, worse sound, batches of questions and answers, and WAV files.
All of it is batched tensor code that runs on any device and knows nothing of the model.

$ python prepare.py --task=mirror --split=ood_length --num_samples=16 --out_dir=data

writes data/mirror/ood_length/000000_question.wav, 000000_answer.wav, ... and a metadata.jsonl.
Training needs none of it: train.py makes its examples as it goes.

A symbol is a sine of about 100 ms and a gap of about 50 ms. Question and answer share one rhythm, a
row of slots, so an answer symbol always sounds in the slot of a question symbol. What the tasks
ask and answer is in tasks/.

Letters: B examples   N slots   S samples
"""
import io
import json
import math
import os
import re
import struct
import warnings
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.io import wavfile

from tasks import REST, TASKS, decode, draw, encode, split_names

SAMPLE_RATE = 16000
TONE, GAP, FADE = 0.100, 0.050, 0.005  # seconds
JITTER = 0.1       # of tone and gap, either way
DETUNE = 4.0       # Hz, either way
LEAD = 0.02        # seconds of silence before the first slot, at most
LOUDNESS = 0.65    # amplitude of a tone of middle loudness
NOISE = 0.03       # standard deviation of the white noise in a question, at most
LOWEST, SPACING = 400.0, 100.0  # Hz: the first symbol, and from each to the next
BLOCK = 6400       # samples; batches are padded to whole blocks, a size that GPUs like
RATES = (6500, 384000)  # sample rates of files that can hold these tones, lowest and highest


# --- the synthesizer ---

class Rhythm(NamedTuple):
    """How each slot is played, (B, N) each: start and length of its tone in seconds, hertz off
    pitch, peak amplitude, phase in radians, and where its gap ends in seconds"""
    start: torch.Tensor
    length: torch.Tensor
    detune: torch.Tensor
    amplitude: torch.Tensor
    phase: torch.Tensor
    end: torch.Tensor


def make_rhythm(n, slots, generator=None, device='cpu'):
    """A random rhythm for n examples of `slots` slots"""
    r = torch.rand(6, n, slots, generator=generator, device=device)
    length = TONE * (1 - JITTER + 2 * JITTER * r[0])
    gap = GAP * (1 - JITTER + 2 * JITTER * r[1])
    end = LEAD * r[5, :, :1] + (length + gap).cumsum(1)
    return Rhythm(
        start=end - length - gap,
        length=length,
        detune=DETUNE * (2 * r[2] - 1),
        amplitude=0.5 + 0.3 * r[3],
        phase=2 * math.pi * r[4],
        end=end,
    )


def max_samples(slots):
    """Samples that hold any rhythm of so many slots, a multiple of BLOCK"""
    longest = LEAD + slots * (TONE + GAP) * (1 + JITTER)
    return math.ceil(round(SAMPLE_RATE * longest) / BLOCK) * BLOCK


def slot_at(start, n, interval, offset=0.0):
    """Which slot was the last to start by time offset + interval * i, for i < n? start (B, N) and
    the times in seconds -> (B, n), -1 before any"""
    # The first i that is not before the slot; then the slots that have started are counted.
    first = ((start - offset) / interval).ceil().long().clamp(0, n)
    one = torch.ones_like(first, dtype=torch.int32)
    count = one.new_zeros(len(start), n + 1).scatter_add(1, first, one)
    return count[:, :n].cumsum(1) - 1


def sounding_at(symbols, rhythm, n, interval, offset=0.0):
    """Which of the symbols (B, N) sounds at time offset + interval * i, for i < n? -> (B, n), REST
    where none does"""
    slot = slot_at(rhythm.start, n, interval, offset).clamp(min=0).long()
    time = torch.arange(n, device=slot.device) * interval + offset
    since = time - rhythm.start.gather(1, slot)
    inside = (since >= 0) & (since < rhythm.length.gather(1, slot))
    return torch.where(inside, symbols.gather(1, slot), REST)


def play(symbols, rhythm, n_samples):
    """Symbols (B, N), REST where nothing sounds -> waveforms (B, n_samples) of sines with
    raised-cosine fades"""
    # A block is shorter than a gap, so no more than one slot sounds in it.
    block = SAMPLE_RATE // 100
    n_blocks = -(-n_samples // block)
    seconds = block / SAMPLE_RATE
    slot = slot_at(rhythm.start, n_blocks, seconds, seconds).clamp(min=0)

    def of_block(x):
        """(B, N) -> (B, n_blocks, 1)"""
        return x.gather(1, slot)[:, :, None]

    # Differences of samples stay exact, those of seconds do not.
    first = of_block((rhythm.start * SAMPLE_RATE).ceil())
    t = torch.arange(n_blocks * block, device=slot.device).view(-1, block)
    t = (t - first) / SAMPLE_RATE  # (B, n_blocks, block)
    to_edge = torch.minimum(t, of_block(rhythm.length) - t)  # seconds to the tone's nearer end
    fade = torch.sin((to_edge / FADE).clamp(0, 1) * (math.pi / 2)).square()
    hertz = LOWEST + SPACING * symbols + rhythm.detune
    wave = torch.sin(t * of_block(2 * math.pi * hertz) + of_block(rhythm.phase))
    amplitude = of_block(rhythm.amplitude * (symbols >= 0))
    return (wave * fade * amplitude).flatten(1)[:, :n_samples]


def spectral_distance(x, y):
    """Spectral convergence and log-magnitude distance of waveforms (B, S), the mean over three
    resolutions (multi-resolution STFT loss: Yamamoto et al., 2020)"""
    total = 0.0
    for n in (256, 512, 1024):
        window = torch.hann_window(n, device=x.device)
        p, q = (torch.stft(t, n, n // 4, window=window, return_complex=True) for t in (x, y))
        p = (p.abs().square() + 1e-7).sqrt()
        q = (q.abs().square() + 1e-7).sqrt()
        total += (q - p).norm() / q.norm() + (q.log() - p.log()).abs().mean()
    return total / 3


def play_text(text, seed=0):
    """One question as train.py would play it, without noise -> (samples,)"""
    if not text:
        raise ValueError("a question needs at least one symbol")
    rhythm = make_rhythm(1, len(text), torch.Generator().manual_seed(seed))
    n_samples = round(float(rhythm.end[0, -1]) * SAMPLE_RATE)
    return play(torch.tensor([encode(text)]), rhythm, n_samples)[0]


# --- batches ---

class Batch(NamedTuple):
    question: torch.Tensor   # (B, S) waveform with noise
    answer: torch.Tensor     # (B, S) waveform without
    lengths: torch.Tensor    # (B,) samples of the question that count, the same for the answer
    changed: torch.Tensor    # (B,) samples up to the last slot where the answer is not the question
    asked: torch.Tensor      # (B, N) symbols
    wanted: torch.Tensor     # (B, N) symbols
    rhythm: Rhythm


def make_batch(task, split, n, generator=None, device='cpu', part=slice(None), shuffled=False,
               **override):
    """n examples of a split, or part of them, rendered. The generator lives on `device`, except
    for the splits that must be the same anywhere: give those a CPU generator and move the batch.
    shuffled=True gives every question another's answer."""
    asked, wanted = draw(task, split, n, generator, device, **override)
    slots = asked.shape[1]
    if shuffled:
        wanted = wanted[torch.rand(n, generator=generator, device=device).argsort()]
    rhythm = make_rhythm(n, slots, generator, device)
    n_samples = max_samples(slots)
    level = NOISE * torch.rand(n, 1, generator=generator, device=device)
    noise = level * torch.randn(n, n_samples, generator=generator, device=device)

    # The window ends with the last slot that sounds in question or answer. In training, silence
    # may follow, as in a recording and in a line of working whose end is used up.
    at = torch.arange(slots, device=asked.device)
    last = torch.where((asked != REST) | (wanted != REST), at, 0).amax(1)
    if split == 'train':
        share = torch.rand(n, generator=generator, device=last.device) ** 3
        last += (share * (slots - last)).long()

    asked = asked[part]
    wanted = wanted[part]
    noise = noise[part]
    last = last[part]
    rhythm = Rhythm(*[t[part] for t in rhythm])
    end = (rhythm.end * SAMPLE_RATE).round().long()
    lengths = end.gather(1, last[:, None])[:, 0]
    new = asked != wanted
    changed = torch.where(new, end, 0).amax(1)

    # What is played anew, not repeated, is played plainly: on pitch and of middle loudness.
    plain = rhythm._replace(
        detune=torch.where(new, 0, rhythm.detune),
        amplitude=torch.where(new, LOUDNESS, rhythm.amplitude),
    )
    question = play(asked, rhythm, n_samples) + noise
    answer = play(wanted, plain, n_samples)
    return Batch(question, answer, lengths, changed, asked, wanted, rhythm)


class Hiding(NamedTuple):
    """What must be copied can only be pointed at, and training makes sure of it: in a share of its
    examples the decoder finds another question, that of its neighbour in the batch, instead of its
    own. By content it finds all of the other; by clock only from somewhere behind the last change
    on, and under noise. The pointer alone always has its own. So what is repeated cannot depend on
    what it is or on what usually follows, and what is worked out cannot come from a place where
    all of the number is known. (In mod, neighbours go on with the same divisors: its `pairs`.)"""
    neighbour: torch.Tensor  # (B,) whose question is found by content; oneself if nothing is hidden
    visible: torch.Tensor    # (B, T) where the clock finds one's own
    noise: torch.Tensor      # (B, T, D) over the neighbour's tokens


def hide_from(batch, share, n, part, config, generator):
    """Draw Hiding for a batch that is a part, a slice, of n examples, given the model's config.
    Random numbers are drawn for all n, so that several processes draw alike."""
    device, T = generator.device, batch.question.shape[1] // config.token
    hidden, spared, strength = torch.rand(3, n, generator=generator, device=device)[:, part]
    # Each noise vector covers two tokens, about as long as a tone.
    size = n, -(-T // 2), config.d_model
    noise = torch.randn(size, generator=generator, device=device)[part]
    noise = (2 * strength[:, None, None] * noise).repeat_interleave(2, 1)[:, :T]
    # Some of what follows the change is spared, or the border would tell where the change ends.
    until = batch.changed + (spared.square() * (batch.lengths - batch.changed)).long()
    until = torch.where(hidden < share, until, batch.question.shape[1])
    visible = torch.arange(T, device=device) < until[:, None] // config.token
    example = torch.arange(len(visible), device=device)
    return Hiding(torch.where(visible.all(1), example, example ^ 1), visible, noise)


def changed_at(batch, n, interval):
    """Does what sounds from interval * i to interval * (i + 1) belong to a slot in which the answer
    is not the question, for i < n? -> (B, n) bool"""
    slot = slot_at(batch.rhythm.start, n, interval, interval).clamp(min=0)
    return (batch.asked != batch.wanted).gather(1, slot)


def split_batches(task, split, n, seed=1337, device='cpu', **override):
    """The first n examples of a fixed test set, the same on any machine, in batches of about 2**23
    samples"""
    generator = torch.Generator().manual_seed(seed)
    parts, made = [], 0
    while made < n:
        # Always 50, so that the same questions come whatever n is.
        parts.append(make_batch(task, split, 50, generator, **override))
        made += 50
        if made >= n or len(parts) * parts[0].question.numel() >= 2 ** 23:
            keep = 50 * len(parts) - max(0, made - n)
            columns = zip(*[(*part[:-1], *part.rhythm) for part in parts], strict=True)
            joined = [torch.cat(column)[:keep].to(device) for column in columns]
            yield Batch(*joined[:6], Rhythm(*joined[6:]))
            parts = []


# --- controls: each takes a batch and gives it back with its questions changed ---

def other_phases(b):
    n_samples = b.question.shape[1]
    device = b.question.device
    generator = torch.Generator(device).manual_seed(len(b.asked))
    phase = torch.rand(b.asked.shape, generator=generator, device=device)
    noise = b.question - play(b.asked, b.rhythm, n_samples)
    rhythm = b.rhythm._replace(phase=2 * math.pi * phase)
    return b._replace(question=noise + play(b.asked, rhythm, n_samples))


def noise_for_tones(b):
    """Noise of the same energy, over 5 ms each, where tones were: only their rhythm can be heard"""
    device = b.question.device
    energy = F.avg_pool1d(b.question.square()[:, None], 81, 1, 40)[:, 0]
    generator = torch.Generator(device).manual_seed(len(b.asked))
    noise = torch.randn(b.question.shape, generator=generator, device=device)
    return b._replace(question=energy.sqrt() * noise)


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


# What score.py can do to the questions to see what the answers depend on
CONTROLS = {
    'phase': other_phases,
    'noise': noise_for_tones,
    'longer': longer,
    'shorter': shorter,
}


# --- WAV files ---

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


if __name__ == '__main__':
    from configurator import SEEDS, bounds, configure, fail
    task = 'mirror'       # one of tasks/
    split = 'iid'         # train, val, iid, ood_length, ... : see splits in the task's file
    num_samples = 16      # examples to write
    out_dir = 'data'      # files go to out_dir/task/split
    seed = 1337           # 1337 gives the examples that score.py asks
    configure(globals())
    if task not in TASKS:
        fail(f"there is no task {task!r}; the tasks are {', '.join(TASKS)}")
    bounds(globals(), num_samples=1, seed=SEEDS)
    try:
        names = split_names(task, split)
        if not names:
            fail(f"{task} has no split {split!r}; it has {', '.join(TASKS[task].splits)}")
        folder = os.path.join(out_dir, task, split)
        fresh_folder(folder, r'\d{6}_(question|answer)\.wav')
        rows = []
        for i, name in enumerate(names):
            share = len(range(i, num_samples, len(names)))
            for b in split_batches(task, name, share, seed):
                for j, n in enumerate(b.lengths.tolist()):
                    question = f'{len(rows):06d}_question.wav'
                    answer = f'{len(rows):06d}_answer.wav'
                    write_wav(os.path.join(folder, question), b.question[j, :n])
                    write_wav(os.path.join(folder, answer), b.answer[j, :n])
                    rows.append({
                        'question_file_name': question,
                        'answer_file_name': answer,
                        'task': task,
                        'split': name,
                        'question_symbols': decode(b.asked[j]),
                        'answer_symbols': decode(b.wanted[j]),
                        'duration': n / SAMPLE_RATE,
                        'seed': seed,
                    })
        with open(os.path.join(folder, 'metadata.jsonl'), 'w') as f:
            f.writelines(json.dumps(row) + '\n' for row in rows)
    except ValueError as e:
        fail(e)
    except OSError as e:
        fail(f"cannot write to {e.filename or out_dir}: {e.strerror}")
    print(f"wrote {len(rows)} questions and answers and metadata.jsonl to {folder}")

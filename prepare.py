"""
The sound: a tone synthesizer, worse sound, batches of questions and answers, and WAV files.
All of it is batched tensor code that runs on any device and knows nothing of the model.

$ python prepare.py --task=mirror --split=ood_length --num_samples=16 --out_dir=data

writes data/mirror/ood_length/000000_question.wav, 000000_answer.wav, ... and a metadata.jsonl.
Training needs none of it: train.py makes its examples as it goes. With --format=text the puzzles
are written in words, for models that read (words.py). dataset.py does the writing.

A symbol is a sine of about 100 ms and a gap of about 50 ms. Question and answer share one rhythm, a
row of slots, so an answer symbol always sounds in the slot of a question symbol. What the tasks
ask and answer is in tasks/.

Letters: B examples   N slots   S samples
"""
import math
from typing import NamedTuple

import torch

from configurator import SEEDS, bounds, choices, configure, fail
from files import SAMPLE_RATE
from tasks import REST, TASKS, draw, encode

TONE, GAP, FADE = 0.100, 0.050, 0.005  # seconds
JITTER = 0.1       # of tone and gap, either way
DETUNE = 4.0       # Hz, either way
LEAD = 0.02        # seconds of silence before the first slot, at most
LOUDNESS = 0.65    # amplitude of a tone of middle loudness
NOISE = 0.03       # standard deviation of the white noise in a question, at most
LOWEST, SPACING = 400.0, 100.0  # Hz: the first symbol, and from each to the next
BLOCK = 6400       # samples; batches are padded to whole blocks, a size that GPUs like


# --- the synthesizer ---

class Rhythm(NamedTuple):
    """How each slot is played, (B, N) each: start and length of its tone in seconds, hertz off
    pitch, peak amplitude, phase in radians, and where its gap ends in seconds. overtones (B, K) are
    the amplitudes of the second harmonic, the third, ..., as shares of the first."""
    start: torch.Tensor
    length: torch.Tensor
    detune: torch.Tensor
    amplitude: torch.Tensor
    phase: torch.Tensor
    end: torch.Tensor
    overtones: torch.Tensor


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
        overtones=r.new_zeros(n, 0),
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
    angle = t * of_block(2 * math.pi * hertz) + of_block(rhythm.phase)
    wave = below = torch.sin(angle)
    harmonic, twice_cos = 2 * torch.cos(angle) * below, 2 * torch.cos(angle)
    for k in range(rhythm.overtones.shape[1]):
        can_be = (k + 2) * hertz < SAMPLE_RATE / 2
        wave = wave + of_block(rhythm.overtones[:, k:k + 1] * can_be) * harmonic
        harmonic, below = twice_cos * harmonic - below, harmonic  # sin (k + 1)x from sin kx
    amplitude = of_block(rhythm.amplitude * (symbols >= 0))
    return (wave * fade * amplitude).flatten(1)[:, :n_samples]


def play_text(text, seed=0, slots=0):
    """One question as train.py would play it, without noise, and silence up to so many slots
    -> (samples,)"""
    if not text:
        raise ValueError("a question needs at least one symbol")
    symbols = encode(text) + [REST] * (slots - len(text))
    rhythm = make_rhythm(1, len(symbols), torch.Generator().manual_seed(seed))
    n_samples = round(float(rhythm.end[0, -1]) * SAMPLE_RATE)
    return play(torch.tensor([symbols]), rhythm, n_samples)[0]


# --- real sound: people's tempo, other instruments, rooms, noise ---

TONE_RMS = LOUDNESS / math.sqrt(2)  # of a tone of middle loudness
TEMPO = 0.6, 2.0    # durations, as multiples: of a fast player and of a slow one
GAPS = 0.012, 0.6   # seconds
OVERTONES = 4
COLOURS = 8         # octaves of noise


def gain(decibels):
    return 10 ** (decibels / 20)


class Chance:
    """Random numbers for each of n examples"""

    def __init__(self, n, generator, device):
        self.n, self.how = n, {'generator': generator, 'device': device}

    def uniform(self, low, high, size=1):
        return low + (high - low) * torch.rand(self.n, size, **self.how)

    def log_uniform(self, low, high):
        return torch.exp(self.uniform(math.log(low), math.log(high)))

    def some(self, share):
        """True for a share of the examples"""
        return self.uniform(0, 1) < share


def real_rhythm(rhythm, last, n_samples, chance):
    """Play a rhythm as people and instruments would. In each respect many examples stay as they
    are, and so does the timing of those that would not fit into n_samples up to slot `last` (B,).
    """
    slots = rhythm.start.shape[1]

    # Tempo: the gaps and each symbol for itself, then all of it, as slow as there is room for.
    each = 1 + chance.uniform(-0.25, 0.25, slots) * chance.some(0.3)
    length = rhythm.length * each
    gap = (rhythm.end - rhythm.start - rhythm.length) * each
    wider = chance.log_uniform(*GAPS) / GAP
    gap = gap * torch.where(chance.some(0.5), wider, 1.0)
    lead = rhythm.start[:, :1]
    needed = (length + gap).cumsum(1).gather(1, last[:, None])
    room = n_samples / SAMPLE_RATE - lead
    tempo = chance.log_uniform(*TEMPO)
    tempo = torch.where(chance.some(0.6), tempo, 1.0)
    tempo = tempo.minimum(room / needed)
    fits = tempo >= TEMPO[0]
    length = tempo * length
    gap = tempo * gap
    end = torch.where(fits, lead + (length + gap).cumsum(1), rhythm.end)
    start = torch.where(fits, end - length - gap, rhythm.start)
    length = torch.where(fits, length, rhythm.length)

    # Pitch: the instrument is out of tune, or each tone is. Loudness, timbre.
    tuned = chance.some(0.6)
    off = torch.where(tuned, chance.uniform(-12, 12), chance.uniform(-49, 49))
    each = torch.where(tuned & chance.some(0.4), 5, 1)
    uneven = LOUDNESS * gain(chance.uniform(-6, 6, slots))
    amplitude = torch.where(chance.some(0.4), uneven, rhythm.amplitude)
    fainter = chance.uniform(-10, 0) * chance.some(0.3)
    order = torch.arange(2, 2 + OVERTONES, device=start.device)
    overtones = chance.uniform(0, 1.1, OVERTONES) / order
    return Rhythm(
        start=start,
        length=length,
        detune=off + each * rhythm.detune,
        amplitude=amplitude * gain(fainter),
        phase=rhythm.phase,
        end=end,
        overtones=overtones * chance.some(0.4),
    )


def coloured(white, each):
    """White noise (B, S) -> a sum of octaves, (B, S), of which each has its amplitude in (B, K). In
    an octave a number stays for twice as long as in the one above."""
    at = torch.arange(white.shape[1], device=white.device)
    octaves = [white[:, at >> k] for k in range(each.shape[1])]
    return sum(a * octave for a, octave in zip(each[:, None].unbind(2), octaves, strict=True))


def real_noise(n_samples, chance):
    """Noise (n, n_samples), from none to 6 dB over the tones, white or falling off towards high
    pitches, with a few clicks"""
    each = chance.uniform(0, 1, COLOURS) * ~chance.some(0.4)
    each = torch.cat([1 - each[:, :1], each[:, 1:]], 1)
    each = each / each.square().sum(1, keepdim=True).sqrt()
    under = torch.where(chance.some(0.7), chance.uniform(-6, 40), chance.uniform(25, 60))
    level = TONE_RMS * gain(-under)
    white = torch.randn(chance.n, n_samples, **chance.how)
    noise = coloured(white, level * each)
    at = (n_samples * chance.uniform(0, 1, 6)).long()
    clicks = chance.uniform(-1, 1, 6) * chance.some(0.15)
    return noise.scatter_add(1, at.clamp(max=n_samples - 1), clicks)


class Room(NamedTuple):
    """Echoes after each of K delays in samples (K,) and their gains (B, K); each repeats what the
    ones before have left, which makes 2^K. direct and tail (B, 1) are the shares of the direct
    sound and of all echoes that are heard."""
    delays: torch.Tensor
    gains: torch.Tensor
    direct: torch.Tensor
    tail: torch.Tensor


def draw_room(chance):
    """Decaying rooms: 60 dB down after 0.05 to 1.2 s, 24 dB under the direct sound to 12 over it"""
    device = chance.how['device']
    delays = 0.002 * 2 ** torch.arange(9, device=device)  # seconds; all examples share them
    delays = delays * (0.7 + 0.6 * torch.rand(9, **chance.how))
    gains = 10 ** (-3 * delays / chance.log_uniform(0.05, 1.2))
    energy = (1 + gains.square()).prod(1, keepdim=True) - 1
    echoes = gain(chance.uniform(-24, 12))
    direct = (1 + echoes.square()).rsqrt()  # all of it is as loud as the tones alone
    signs = torch.where(chance.uniform(0, 1, 9) < 0.5, -1.0, 1.0)
    return Room(
        delays=(delays * SAMPLE_RATE).long(),
        gains=gains * signs,
        direct=direct,
        tail=direct * echoes * energy.rsqrt(),
    )


def reverberate(waves, room):
    """Waveforms (B, S) as they are heard in a room"""
    at = torch.arange(waves.shape[1], device=waves.device)
    wet = waves
    for k in range(len(room.delays)):
        before = at - room.delays[k]
        echo = wet.index_select(1, before.clamp(min=0)) * (before >= 0)
        wet = wet + room.gains[:, k:k + 1] * echo
    return room.direct * waves + room.tail * (wet - waves)


def draw_limit(chance):
    """Amplitudes (n, 1) over which nothing can be recorded: a seventh of the examples is clipped"""
    limit = LOUDNESS * chance.log_uniform(0.1, 1)
    return torch.where(chance.some(1 / 7), limit, math.inf)


def overdriven(waves, limit):
    """Waveforms (B, S) clipped at `limit` (B, 1), and played as loud as before"""
    return waves.clamp(-limit, limit) * (LOUDNESS / limit).clamp(min=1)


def moved(rhythm, source):
    """The rhythm in which each slot plays the tone of another, source (B, N), just as it was"""
    _, length, detune, amplitude, phase = (t.gather(1, source) for t in rhythm[:5])
    end = rhythm.end + (length - rhythm.length).cumsum(1)
    start = end - (rhythm.end - rhythm.start - rhythm.length) - length
    return Rhythm(start, length, detune, amplitude, phase, end, rhythm.overtones)


def answer_rhythm(task, asked, rhythm):
    """The rhythm of the answer to rows (B, N): the question's, unless its tones move"""
    source = TASKS[task].source
    return moved(rhythm, source(asked)) if source else rhythm


def repeats_at(task, asked, wanted, rhythm, n, interval):
    """Does a tone of the answer that is one of the question, too, in the same slot or moved from
    another, sound between interval * i and interval * (i + 1), for i < n? -> (B, n) bool"""
    if TASKS[task].source:
        asked, rhythm = wanted, answer_rhythm(task, asked, rhythm)
    slot = slot_at(rhythm.start, n, interval, interval).clamp(min=0)
    ends = (rhythm.start + rhythm.length).gather(1, slot)
    sounds = torch.arange(n, device=slot.device) * interval < ends
    return sounds & ((asked == wanted) & (asked != REST)).gather(1, slot)


def only_repeated(waves, task, asked, wanted, rhythm):
    """Waveforms (B, S) without what echoes into a gap, or into the slot of something new"""
    block = SAMPLE_RATE // 100
    kept = repeats_at(task, asked, wanted, rhythm, waves.shape[1] // block, 0.01)
    return (waves.unflatten(1, (-1, block)) * kept[:, :, None]).flatten(1)


def play_plainly(symbols, rhythm, n_samples):
    """What is played anew, not repeated: on pitch and of middle loudness"""
    plain = rhythm._replace(
        detune=torch.zeros_like(rhythm.detune),
        amplitude=torch.full_like(rhythm.amplitude, LOUDNESS),
        overtones=rhythm.overtones[:, :0],
    )
    return play(symbols, plain, n_samples)


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
               sound='clean', **override):
    """n examples of a split, or part of them, rendered. The generator lives on `device`, except
    for the splits that must be the same anywhere: give those a CPU generator and move the batch.
    shuffled=True gives every question another's answer."""
    chance = Chance(n, generator, device)
    asked, wanted = draw(task, split, n, generator, device, **override)
    slots = asked.shape[1]
    if shuffled:
        wanted = wanted[chance.uniform(0, 1)[:, 0].argsort()]
    rhythm = make_rhythm(n, slots, generator, device)
    n_samples = max_samples(slots)

    # The window ends with the last slot that sounds in question or answer. In training, silence
    # may follow, as in a recording and in a line of working whose end is used up.
    at = torch.arange(slots, device=asked.device)
    last = torch.where((asked != REST) | (wanted != REST), at, 0).amax(1)
    if split == 'train':
        share = chance.uniform(0, 1)[:, 0] ** 3
        last += (share * (slots - last)).long()

    if sound == 'real':
        rhythm = real_rhythm(rhythm, last, n_samples, chance)
        room, limit = draw_room(chance), draw_limit(chance)
        noise = real_noise(n_samples, chance)
    else:
        level = chance.uniform(0, NOISE)
        noise = level * torch.randn(n, n_samples, **chance.how)

    asked, wanted, noise, last = asked[part], wanted[part], noise[part], last[part]
    rhythm = Rhythm(*[t[part] for t in rhythm])
    new = (asked != wanted) & (TASKS[task].source is None)
    played = answer_rhythm(task, asked, rhythm)
    end = (rhythm.end.maximum(played.end) * SAMPLE_RATE).round().long()
    lengths = end.gather(1, last[:, None])[:, 0]
    changed = torch.where(new, end, 0).amax(1)

    question = play(asked, rhythm, n_samples)
    repeated = play(torch.where(new, REST, wanted), played, n_samples)
    if sound == 'real':  # half of the examples are in rooms
        half = len(question) // 2
        room = Room(room.delays, *[t[part][:half].repeat(2, 1) for t in room[1:]])
        inside = reverberate(torch.cat([question[:half], repeated[:half]]), room)
        question[:half], repeated[:half] = inside.chunk(2)
        repeated = only_repeated(repeated, task, asked, wanted, rhythm)
    question = question + noise
    if sound == 'real':
        question, repeated = (overdriven(x, limit[part]) for x in (question, repeated))
    answer = repeated + play_plainly(torch.where(new, wanted, REST), rhythm, n_samples)
    return Batch(question, answer, lengths, changed, asked, wanted, rhythm)


def split_batches(task, split, n, seed=1337, device='cpu', **override):
    """The first n examples of a fixed test set, the same on any machine, in batches of about 2**22
    samples, which a CPU's caches hold, or twice as many"""
    most = 2 ** 22 if str(device) == 'cpu' else 2 ** 23
    generator = torch.Generator().manual_seed(seed)
    parts, made = [], 0
    while made < n:
        # Always 50, so that the same questions come whatever n is.
        parts.append(make_batch(task, split, 50, generator, **override))
        made += 50
        if made >= n or len(parts) * parts[0].question.numel() >= most:
            keep = 50 * len(parts) - max(0, made - n)
            columns = zip(*[(*part[:-1], *part.rhythm) for part in parts], strict=True)
            joined = [torch.cat(column)[:keep].to(device) for column in columns]
            yield Batch(*joined[:6], Rhythm(*joined[6:]))
            parts = []


if __name__ == '__main__':
    from dataset import write_sounds, write_text
    task = 'mirror'       # one of tasks/; text is of logic, dyna, filtro, inducto, or all of them
    format = 'wav'        # or text: the puzzles in words, for models that read
    split = 'iid'         # of wav: train, val, iid, ood_length, ..., see the task's file
    num_samples = 16      # of wav: examples to write
    out_dir = 'data'      # files go to out_dir/task/split, text to out_dir/task
    seed = 1337           # 1337 gives the examples that score.py asks
    # of text
    total_tokens = '10M'  # to write, at least; words, numbers and signs are counted
    levels = '0.4,0.35,0.25'   # shares of easy, medium and hard questions
    ratios = '0.9,0.05,0.05'   # of train, validation and test
    dry_run = False       # say what would be written, and write nothing
    push = ''             # user/name: also upload it to the Hugging Face Hub
    config = configure(globals())
    choices(config, format=('wav', 'text'))
    bounds(config, num_samples=1, seed=SEEDS)
    try:
        if format == 'text':
            write_text(config)
        else:
            write_sounds(task, split, num_samples, out_dir, seed)
    except ValueError as e:
        fail(e)
    except OSError as e:
        fail(f"cannot write to {e.filename or out_dir}: {e.strerror}")

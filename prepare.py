"""
The sound: a tone synthesizer, worse sound, batches of questions and answers, and WAV files.
All of it is batched tensor code that runs on any device and knows nothing of the model.

$ python prepare.py --task=mirror --split=ood_length --num_samples=16 --out_dir=data

writes data/mirror/ood_length/000000_question.wav, 000000_answer.wav, ... and a metadata.jsonl.
Training needs none of it: train.py makes its examples as it goes.

A symbol is a sine of about 100 ms and a gap of about 50 ms. Question and answer share one rhythm, a
row of slots, so an answer symbol always sounds in the slot of a question symbol. Letters: B
examples, N slots, S samples
"""
from configurator import SEEDS, bounds, configure, fail

# --- settings: of the data set that is written ---
task = 'mirror'       # one of tasks/
split = 'iid'         # train, val, iid, ood_length, ..., see the task's file
num_samples = 16      # examples to write
out_dir = 'data'      # files go to out_dir/task/split
seed = 1337           # 1337 gives the examples that score.py asks
config = configure(globals())

# isort: split
import math
from typing import Callable, NamedTuple

import torch
from torch.utils._pytree import tree_map

from audio import SAMPLE_RATE
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
    longer, wider, higher, louder, phase, later = r
    length = TONE * (1 - JITTER + 2 * JITTER * longer)
    gap = GAP * (1 - JITTER + 2 * JITTER * wider)
    lead = LEAD * later[:, :1]  # before the first slot
    end = lead + (length + gap).cumsum(1)
    return Rhythm(
        start=end - length - gap,
        length=length,
        detune=DETUNE * (2 * higher - 1),
        amplitude=0.5 + 0.3 * louder,
        phase=2 * math.pi * phase,
        end=end,
        overtones=r.new_zeros(n, 0),
    )


def max_samples(slots, block=BLOCK):
    """Samples that hold any rhythm of so many slots, a multiple of `block`"""
    longest = LEAD + slots * (TONE + GAP) * (1 + JITTER)
    return math.ceil(round(SAMPLE_RATE * longest) / block) * block


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
    slot = slot_at(rhythm.start, n, interval, offset)
    slot = slot.clamp(min=0).long()
    time = torch.arange(n, device=slot.device) * interval + offset
    since = time - rhythm.start.gather(1, slot)
    length = rhythm.length.gather(1, slot)
    inside = (since >= 0) & (since < length)
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
    # A tone fades over its first and its last 5 ms.
    to_edge = torch.minimum(t, of_block(rhythm.length) - t)
    faded = (to_edge / FADE).clamp(0, 1)
    fade = torch.sin(faded * (math.pi / 2)).square()
    hertz = LOWEST + SPACING * symbols + rhythm.detune
    angle = t * of_block(2 * math.pi * hertz) + of_block(rhythm.phase)
    wave = torch.sin(angle)
    # Overtones, as far as the sample rate holds them: sin (k + 1)x from sin kx and the one below.
    twice_cos = 2 * torch.cos(angle)
    below, harmonic = wave, twice_cos * wave
    for k in range(rhythm.overtones.shape[1]):
        can_be = (k + 2) * hertz < SAMPLE_RATE / 2
        amplitude = rhythm.overtones[:, k:k + 1] * can_be
        wave = wave + of_block(amplitude) * harmonic
        below, harmonic = harmonic, twice_cos * harmonic - below
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
OVERTONES, OCTAVES, ECHOES = 4, 8, 9  # of an instrument, of noise, of a room


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

    # Each symbol for itself is played longer or shorter, and the gaps wider or narrower.
    uneven = 1 + chance.uniform(-0.25, 0.25, slots) * chance.some(0.3)
    length = rhythm.length * uneven
    gap = (rhythm.end - rhythm.start - rhythm.length) * uneven
    wider = chance.log_uniform(*GAPS) / GAP
    gap = gap * torch.where(chance.some(0.5), wider, 1.0)
    # Then all of it gets its tempo, as slow as there is room for.
    lead = rhythm.start[:, :1]
    needed = (length + gap).cumsum(1).gather(1, last[:, None])
    left = n_samples / SAMPLE_RATE - lead
    tempo = chance.log_uniform(*TEMPO)
    tempo = torch.where(chance.some(0.6), tempo, 1.0)
    tempo = tempo.minimum(left / needed)
    fits = tempo >= TEMPO[0]
    # What does not fit keeps its timing.
    length = tempo * length
    gap = tempo * gap
    end = lead + (length + gap).cumsum(1)
    end = torch.where(fits, end, rhythm.end)
    start = torch.where(fits, end - length - gap, rhythm.start)
    length = torch.where(fits, length, rhythm.length)

    # The instrument is out of tune, or each tone is.
    is_tuned = chance.some(0.6)
    off = torch.where(is_tuned, chance.uniform(-12, 12), chance.uniform(-49, 49))
    each = torch.where(is_tuned & chance.some(0.4), 5, 1)
    # Some play each tone as loud as they like, and some all of them fainter.
    by_tone = LOUDNESS * gain(chance.uniform(-6, 6, slots))
    amplitude = torch.where(chance.some(0.4), by_tone, rhythm.amplitude)
    fainter = chance.uniform(-10, 0) * chance.some(0.3)
    # The higher an overtone, the fainter it is.
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


class Recording(NamedTuple):
    """How each of B rows is recorded. Clean sound has K = 1 octave of noise, and neither echoes nor
    clicks: E and C are 0."""
    octaves: torch.Tensor   # (B, K) amplitudes of the octaves of its noise; white if K is 1
    decay: torch.Tensor     # (B, 1) seconds until an echo of the room is 60 dB down
    echoes: torch.Tensor    # (B, 1) amplitude of all echoes beside the direct sound; 0: in no room
    signs: torch.Tensor     # (B, E) of each echo
    click_at: torch.Tensor  # (B, C) as shares of the window
    clicks: torch.Tensor    # (B, C) their amplitudes
    limit: torch.Tensor     # (B, 1) amplitude over which nothing can be recorded


def clean_recording(chance):
    """A little white noise"""
    level = chance.uniform(0, NOISE)
    ones, none = torch.ones_like(level), level[:, :0]
    return Recording(level, ones, 0 * ones, none, none, none, math.inf * ones)


def real_recording(chance):
    """Noise from none to 6 dB over the tones, white or falling off towards high pitches, with a few
    clicks; for half of the rows a room, 60 dB down after 0.05 to 1.2 s, its echoes 24 dB under the
    direct sound to 12 over it; a seventh is clipped"""
    # The room: how long it rings, and how loud.
    decay = chance.log_uniform(0.05, 1.2)
    echoes = gain(chance.uniform(-24, 12)) * chance.some(0.5)
    signs = torch.where(chance.uniform(0, 1, ECHOES) < 0.5, -1.0, 1.0)
    # A loud question is more than some recorders can take.
    limit = LOUDNESS * chance.log_uniform(0.1, 1)
    limit = torch.where(chance.some(1 / 7), limit, math.inf)
    # Four in ten are white: the highest octave alone.
    each = chance.uniform(0, 1, OCTAVES) * ~chance.some(0.4)
    each = torch.cat([1 - each[:, :1], each[:, 1:]], 1)
    # Together the octaves are as loud as one.
    each = each / each.square().sum(1, keepdim=True).sqrt()
    # Noise is loud, or hardly to be heard.
    under = torch.where(chance.some(0.7), chance.uniform(-6, 40), chance.uniform(25, 60))
    octaves = TONE_RMS * gain(-under) * each
    # A few examples have up to six clicks, wherever they fall.
    clicks = chance.uniform(-1, 1, 6) * chance.some(0.15)
    return Recording(octaves, decay, echoes, signs, chance.uniform(0, 1, 6), clicks, limit)


class Room(NamedTuple):
    """Echoes after each of E delays in samples (E,) and their gains (B, E); each repeats what the
    ones before have left, which makes 2^E. direct and tail (B, 1) are the shares of the direct
    sound and of all echoes that are heard."""
    delays: torch.Tensor
    gains: torch.Tensor
    direct: torch.Tensor
    tail: torch.Tensor


def draw_room(recording, generator):
    """The rooms of B rows, which share the delays: from 2 ms up, each about twice the one before"""
    random = torch.rand(ECHOES, generator=generator, device=recording.decay.device)
    delays = 0.002 * 2 ** torch.arange(ECHOES, device=random.device)
    delays = delays * (0.7 + 0.6 * random)
    # An echo loses 60 dB in the time of decay.
    gains = 10 ** (-3 * delays / recording.decay)
    energy = (1 + gains.square()).prod(1, keepdim=True) - 1
    # Direct sound and echoes together are as loud as the tones alone.
    direct = (1 + recording.echoes.square()).rsqrt()
    return Room(
        delays=(delays * SAMPLE_RATE).long(),
        gains=gains * recording.signs,
        direct=direct,
        tail=direct * recording.echoes * energy.rsqrt(),
    )


def reverberate(waves, room):
    """Waveforms (B, S) as they are heard in a room"""
    at = torch.arange(waves.shape[1], device=waves.device)
    wet = waves
    # Each delay repeats all that the ones before have left.
    for k in range(len(room.delays)):
        before = at - room.delays[k]
        echo = wet.index_select(1, before.clamp(min=0))
        echo = echo * (before >= 0)
        wet = wet + room.gains[:, k:k + 1] * echo
    return room.direct * waves + room.tail * (wet - waves)


def coloured(white, each):
    """White noise (B, S) -> a sum of octaves, (B, S), of which each has its amplitude in (B, K). In
    an octave a number stays for twice as long as in the one above."""
    at = torch.arange(white.shape[1], device=white.device)
    octaves = [white[:, at >> k] for k in range(each.shape[1])]
    amplitudes = each[:, None].unbind(2)
    return sum(a * octave for a, octave in zip(amplitudes, octaves, strict=True))


def overdriven(waves, limit):
    """Waveforms (B, S) clipped at `limit` (B, 1), and played as loud as before"""
    return waves.clamp(-limit, limit) * (LOUDNESS / limit).clamp(min=1)


def noisy(waves, white, octaves, limit):
    """Waveforms (B, S) in noise, which is white (B, S) coloured by `octaves` (B, K), and clipped"""
    return overdriven(waves + coloured(white, octaves), limit)


def answered(repeated, limit, kept, made):
    """The answer (B, S): what it repeats, clipped as its question, in those 10 ms that are kept
    (B, S / 160), and what it plays anew. What echoes into a gap, or into the slot of something new,
    is no part of it."""
    blocks = overdriven(repeated, limit).unflatten(1, (kept.shape[1], -1))
    return (blocks * kept[:, :, None]).flatten(1) + made


def answer_rhythm(task, asked, rhythm):
    """The rhythm of the answer to rows (B, N): the question's, unless its tones move, which they do
    just as they are"""
    if not TASKS[task].source:
        return rhythm
    source = TASKS[task].source(asked)
    length = rhythm.length.gather(1, source)
    gap = rhythm.end - rhythm.start - rhythm.length
    end = rhythm.end + (length - rhythm.length).cumsum(1)
    return rhythm._replace(
        start=end - gap - length,
        length=length,
        detune=rhythm.detune.gather(1, source),
        amplitude=rhythm.amplitude.gather(1, source),
        phase=rhythm.phase.gather(1, source),
        end=end,
    )


def repeats_at(task, asked, wanted, rhythm, n, interval):
    """Does a tone of the answer that is one of the question, too, in the same slot or moved from
    another, sound between interval * i and interval * (i + 1), for i < n? -> (B, n) bool"""
    if TASKS[task].source:
        asked, rhythm = wanted, answer_rhythm(task, asked, rhythm)
    slot = slot_at(rhythm.start, n, interval, interval).clamp(min=0)
    ends = (rhythm.start + rhythm.length).gather(1, slot)
    sounds = torch.arange(n, device=slot.device) * interval < ends
    repeats = (asked == wanted) & (asked != REST)
    return sounds & repeats.gather(1, slot)


def play_plainly(symbols, rhythm, n_samples, play=play):
    """What is played anew, not repeated: on pitch and of middle loudness"""
    plain = rhythm._replace(
        detune=torch.zeros_like(rhythm.detune),
        amplitude=torch.full_like(rhythm.amplitude, LOUDNESS),
        overtones=rhythm.overtones[:, :0],
    )
    return play(symbols, plain, n_samples)


# --- batches ---

class Drawn(NamedTuple):
    """All that is drawn for each of B examples, but for its sound"""
    lengths: torch.Tensor    # (B,) samples of the question that count, the same for the answer
    changed: torch.Tensor    # (B,) samples up to the last slot where the answer is not the question
    asked: torch.Tensor      # (B, N) symbols
    wanted: torch.Tensor     # (B, N) symbols
    to_neighbour: torch.Tensor  # (B,) how many rows further on a decoy for this row stands
    rhythm: Rhythm
    recording: Recording


class Batch(NamedTuple):
    question: torch.Tensor   # (B, S) waveform with noise
    answer: torch.Tensor     # (B, S) waveform without
    repeats: torch.Tensor    # (B, S / 160) which 10 ms of the answer repeat the question
    lengths: torch.Tensor    # these are as drawn
    changed: torch.Tensor
    asked: torch.Tensor
    wanted: torch.Tensor
    to_neighbour: torch.Tensor
    rhythm: Rhythm


class Synthesis(NamedTuple):
    """What most of the time goes into; a GPU is handed faster functions of the same names."""
    play: Callable = play
    reverberate: Callable = reverberate
    noisy: Callable = noisy
    answered: Callable = answered


def last_change(asked, wanted, rhythm):
    """Samples up to the last slot where rows (B, N) differ -> (B,)"""
    end = (rhythm.end * SAMPLE_RATE).round().long()
    return torch.where(asked != wanted, end, 0).amax(1)


def draw_examples(task, split, n, generator=None, device='cpu', shuffled=False, sound='clean',
                  block=BLOCK, **override):
    """Draw n examples of a split -> Drawn. The generator lives on `device`. shuffled=True gives
    every question another's answer."""
    chance = Chance(n, generator, device)
    # What is asked
    asked, wanted = draw(task, split, n, generator, device, **override)
    if shuffled:
        wanted = wanted[chance.uniform(0, 1)[:, 0].argsort()]
    # When and how it is played
    slots = asked.shape[1]
    rhythm = make_rhythm(n, slots, generator, device)
    # The window ends with the last slot that sounds in question or answer. In training, silence
    # may follow, as in a recording and in a line of working whose end is used up.
    sounds = (asked != REST) | (wanted != REST)
    last = torch.where(sounds, torch.arange(slots, device=device), 0).amax(1)
    if split == 'train':
        share = chance.uniform(0, 1)[:, 0] ** 3
        last += (share * (slots - last)).long()
    if sound == 'real':
        rhythm = real_rhythm(rhythm, last, max_samples(slots, block), chance)
        recording = real_recording(chance)
    else:
        recording = clean_recording(chance)
    # Where the answer's tones move, its last slot may end later than the question's.
    end = rhythm.end.maximum(answer_rhythm(task, asked, rhythm).end)
    end = (end * SAMPLE_RATE).round().long()
    changed = last_change(asked, wanted, rhythm) if TASKS[task].source is None else 0 * last
    # The tasks draw neighbours side by side.
    to_neighbour = 1 - 2 * (torch.arange(n, device=device) % 2)
    lengths = end.gather(1, last[:, None])[:, 0]
    return Drawn(lengths, changed, asked, wanted, to_neighbour, rhythm, recording)


def render(task, drawn, n_samples, white, generator=None, synthesis=Synthesis(),  # noqa: B008
           own=(), is_own=()):
    """What is Drawn, in windows of n_samples, before white noise (B, n_samples) -> Batch. The last
    m rows may have a sound of their own (m, n_samples), which they have where is_own (m,) says so.
    """
    asked, wanted, rhythm, recording = drawn.asked, drawn.wanted, drawn.rhythm, drawn.recording
    # Of the answer, some slots repeat the question, and the others are new.
    new = (asked != wanted) & (TASKS[task].source is None)
    moved_rhythm = answer_rhythm(task, asked, rhythm)
    question = synthesis.play(asked, rhythm, n_samples)
    repeated = synthesis.play(torch.where(new, REST, wanted), moved_rhythm, n_samples)
    if recording.signs.shape[1]:
        # What is repeated sounds like the question, in its room.
        room = draw_room(recording, generator)
        question = synthesis.reverberate(question, room)
        repeated = synthesis.reverberate(repeated, room)
    if len(own):
        m, is_own = len(own), is_own[:, None]
        question[-m:] = torch.where(is_own, own, question[-m:])
        repeated[-m:] = torch.where(is_own, own, repeated[-m:])
    # Noise and clipping come last, as in a microphone. The repeated is clipped, too, but not noisy.
    click_at = (recording.click_at * n_samples).long().clamp(max=n_samples - 1)
    question = question.scatter_add(1, click_at, recording.clicks)
    question = synthesis.noisy(question, white, recording.octaves, recording.limit)
    repeats = repeats_at(task, asked, wanted, rhythm, n_samples * 100 // SAMPLE_RATE, 0.01)
    # What is new is played plainly, however the question sounds.
    made = play_plainly(torch.where(new, wanted, REST), rhythm, n_samples, synthesis.play)
    answer = synthesis.answered(repeated, recording.limit, repeats, made)
    return Batch(question, answer, repeats, drawn.lengths, drawn.changed, asked, wanted,
                 drawn.to_neighbour, rhythm)


def make_batch(task, split, n, generator=None, device='cpu', synthesis=Synthesis(),  # noqa: B008
               block=BLOCK, **how):
    """n examples of a split, drawn by draw_examples and rendered, in windows of whole blocks. The
    generator lives on `device`, except for the splits that must be the same anywhere: give those a
    CPU generator and move the batch."""
    drawn = draw_examples(task, split, n, generator, device, block=block, **how)
    n_samples = max_samples(drawn.asked.shape[1], block)
    white = torch.randn(n, n_samples, generator=generator, device=device)
    return render(task, drawn, n_samples, white, generator, synthesis)


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
            n_kept = 50 * len(parts) - max(0, made - n)
            yield tree_map(lambda *ts: torch.cat(ts)[:n_kept].to(device), *parts)  # noqa: B023
            parts = []


if __name__ == '__main__':
    from audio.dataset import write_sounds
    bounds(config, num_samples=1, seed=SEEDS)
    try:
        write_sounds(task, split, num_samples, out_dir, seed)
    except ValueError as e:
        fail(e)
    except OSError as e:
        fail(f"cannot write to {e.filename or out_dir}: {e.strerror}")

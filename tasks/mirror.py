"""
Play what you heard.

    C A B B  ->  C A B B
"""
import torch

from tasks.task import LETTERS, REST, SYMBOLS, Split, Task, dice, encode, randint

L, A, K = encode('LAK')


def draw(n, generator, device, low=3, high=10, unseen=False, mixed_symbols=0.0, level=1.0):
    """Letters. mixed_symbols is the share that is drawn from the symbols of all tasks: which symbol
    a tone is must not matter for playing it back. unseen=True uses K and L."""
    rand, _, integers = dice(n, generator, device, level)

    def one_slot():
        """One slot of each question, (n, high) bool"""
        return at == randint(torch.zeros_like(length), length - 1, generator)[:, None]

    length = integers(low, high)
    at = torch.arange(high, device=device)
    q = A + torch.randint(10, (n, high), generator=generator, device=device)
    if mixed_symbols:
        every = A + torch.randint(len(SYMBOLS) - 2, (n, high), generator=generator, device=device)
        # One letter always stays: it says that it is mirror that is asked.
        mixed = (rand(n, high) < mixed_symbols) & ~one_slot()
        q = torch.where(mixed, every, q)
    q += q >= K  # K was not among those drawn: what lies above it moves up by one
    if unseen:
        # A third of the symbols, and one for certain.
        replaced = (rand(n, high) < 0.3) | one_slot()
        q = torch.where(replaced, torch.where(rand(n, high) < 0.5, K, L), q)
    q = torch.where(at < length[:, None], q, REST)
    return q, torch.ones(n, dtype=torch.bool, device=device)


def answer(q):
    return q


def solve(text):
    return text


def of_length(n):
    return dict(low=n, high=n)


SPLITS = {
    'train': Split('training', 'train'),
    'val': Split('validation', 'val'),
    'val_ood': Split('validation, 30 letters', 'far', of_length(30)),
    'iid': Split('3 to 10 letters', 'test'),
    'ood_length_15': Split('15 letters', 'far', of_length(15)),
    'ood_length_20': Split('20 letters', 'far', of_length(20)),
    'ood_length_40': Split('40 letters', 'far', of_length(40)),
    'ood_symbol': Split('unseen tones', 'far', dict(unseen=True)),
    'ood_compose_20': Split('20, unseen tones', 'far', dict(low=20, high=20, unseen=True)),
}

task = Task(
    name='mirror',
    symbols=LETTERS,
    example='ABCA',
    draw=draw,
    splits=SPLITS,
    wishes=('level', 'mixed_symbols'),
    of_length=of_length,
    answer=answer,
    solve=solve,
    hides=True,
)

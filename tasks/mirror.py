"""
Play what you heard.

    C A B B  ->  C A B B
"""
import torch

from tasks.task import LETTERS, REST, SYMBOLS, Task, encode, randint

L, A, K = encode('LAK')


def draw(n, generator, device, low=3, high=10, unseen=False, mixed_symbols=0.0, level=1.0):
    """Letters. mixed_symbols is the share that is drawn from the symbols of all tasks: which symbol
    a tone is must not matter for playing it back. unseen=True uses K and L."""
    def rand(*shape):
        return torch.rand(*shape, generator=generator, device=device)

    def one_place():
        """One slot of each question, (n, high) bool"""
        return at == randint(torch.zeros_like(length), length - 1, generator)[:, None]

    shortest = torch.full((n,), low, device=device)
    length = randint(shortest, shortest + level * (high - low), generator)
    at = torch.arange(high, device=device)
    q = A + torch.randint(10, (n, high), generator=generator, device=device)
    if mixed_symbols:
        every = A + torch.randint(len(SYMBOLS) - 2, (n, high), generator=generator, device=device)
        # One letter always stays: it says that it is mirror that is asked.
        mixed = (rand(n, high) < mixed_symbols) & ~one_place()
        q = torch.where(mixed, every, q)
    q += q >= K  # the symbols on either side of K
    if unseen:
        # A third of the symbols, and one for certain.
        replaced = (rand(n, high) < 0.3) | one_place()
        q = torch.where(replaced, torch.where(rand(n, high) < 0.5, K, L), q)
    q = torch.where(at < length[:, None], q, REST)
    return q, torch.ones(n, dtype=torch.bool, device=device)


def answer(q):
    return q


def solve(text):
    return text


def of_length(n):
    return dict(low=n, high=n)


task = Task(
    name='mirror',
    symbols=LETTERS,
    example='ABCA',
    draw=draw,
    answer=answer,
    solve=solve,
    hides=True,
    splits={
        'train': {},
        'val': {},
        'val_ood': dict(low=30, high=30),
        'iid': {},
        'ood_length_15': dict(low=15, high=15),
        'ood_length_20': dict(low=20, high=20),
        'ood_length_40': dict(low=40, high=40),
        'ood_symbol': dict(unseen=True),
        'ood_compose_20': dict(low=20, high=20, unseen=True),
    },
    said={
        'iid': '3 to 10 letters',
        'ood_length_15': '15 letters',
        'ood_length_20': '20 letters',
        'ood_length_40': '40 letters',
        'ood_symbol': 'unseen tones',
        'ood_compose_20': '20, unseen tones',
    },
    of_length=of_length,
)

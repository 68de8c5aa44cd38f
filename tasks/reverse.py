"""
Play back what you heard, last letter first.

    C A B D  ->  D B A C
"""
import torch

from tasks import mirror
from tasks.task import LETTERS, REST, Task


def source(q):
    slot = torch.arange(q.shape[1], device=q.device)
    length = (q != REST).sum(1, keepdim=True)
    return torch.where(slot < length, length - 1 - slot, slot)


def answer(q):
    return q.gather(1, source(q))


def solve(text):
    return text[::-1]


task = Task(
    name='reverse',
    symbols=LETTERS,
    example='ABC',
    draw=mirror.draw,
    splits=mirror.SPLITS,
    wishes=('level', 'mixed_symbols'),
    answer=answer,
    solve=solve,
    source=source,
)

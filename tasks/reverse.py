"""
Play back what you heard, last letter first.

    C A B D  ->  D B A C
"""
import torch

from tasks import mirror
from tasks.task import LETTERS, REST, Task


def answer(q):
    length = (q != REST).sum(1, keepdim=True)
    slot = torch.arange(q.shape[1], device=q.device)
    a = q.gather(1, (length - 1 - slot).clamp(min=0))
    return torch.where(slot < length, a, REST)


def solve(text):
    return text[::-1]


task = Task(
    name='reverse',
    symbols=LETTERS,
    example='ABC',
    draw=mirror.draw,
    answer=answer,
    solve=solve,
    moves=True,
    splits=mirror.task.splits,
    said=mirror.task.said,
)

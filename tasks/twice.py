"""
Play back what you heard, and in as many silent slots behind it once more.

    C A B . . .  ->  C A B C A B
"""
import torch
import torch.nn.functional as F

from tasks import mirror
from tasks.task import LETTERS, REST, Task


def draw(n, generator, device, high=10, **arguments):
    """As mirror's, with room for the letters once more"""
    q, fits = mirror.draw(n, generator, device, high=high, **arguments)
    return F.pad(q, (0, high), value=REST), fits


def source(q):
    slot = torch.arange(q.shape[1], device=q.device)
    length = (q != REST).sum(1, keepdim=True)
    again = (slot >= length) & (slot < 2 * length)
    return torch.where(again, slot - length, slot)


def answer(q):
    return q.gather(1, source(q))


def solve(text):
    return 2 * text


def slots(text):
    return 2 * len(text)


task = Task(
    name='twice',
    symbols=LETTERS,
    example='ABC',
    draw=draw,
    splits=mirror.SPLITS,
    wishes=('level', 'mixed_symbols'),
    answer=answer,
    solve=solve,
    slots=slots,
    source=source,
)

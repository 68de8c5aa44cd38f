"""
Play back what you heard, last letter first.

    C A B D  ->  D B A C
"""
import torch

from tasks.task import LETTERS, REST, Task, encode

A, K = encode('AK')


def draw(n, generator, device, low=3, high=10):
    length = torch.randint(low, high + 1, (n, 1), generator=generator, device=device)
    slot = torch.arange(high, device=device)
    q = A + torch.randint(10, (n, high), generator=generator, device=device)
    q += q >= K  # K is never trained on
    q = torch.where(slot < length, q, REST)
    return q, length[:, 0] > 0  # all of them are as asked


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
    draw=draw,
    answer=answer,
    solve=solve,
    splits={
        'train': {},
        'val': {},
        'val_ood': dict(low=11, high=11),
        'iid': {},
        'ood_length_12': dict(low=12, high=12),
    },
)

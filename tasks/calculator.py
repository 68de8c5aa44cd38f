"""
Remainders with a calculator: the model only calls it. The tone = in the place of the first % says
that the division at hand is to be done; a calculator hears that and plays the remainder in its
place.

    9 8 7 % 6 5 % 7      is asked
    9 8 7 = 6 5 % 7      what the model plays: a call
    . . . . 1 2 % 7      what the calculator makes of it, which the model hears next

Questions and answers are those of mod.
"""
import re

import torch

from tasks import mod
from tasks.task import REST, decode, encode

CALL, = encode('=')


def next_line(q):
    """Rows (B, N) -> the same with a call in the place of the first %, if there is none yet"""
    is_percent = q == mod.PERCENT
    first = is_percent & (is_percent.cumsum(1) == 1)
    calls = (q == CALL).any(1, keepdim=True)
    return torch.where(first & ~calls, CALL, q)


def tool(text):
    """A line in text -> what the calculator plays in its slots, a row; ValueError if that is no
    call"""
    call = re.fullmatch(r'(\d+)=(\d*)((?:%\d*)*)', text)
    if not call:
        raise ValueError
    a, b, rest = call.groups()
    row = [mod.NONE]
    if int(b or 0):
        row = encode(mod.working(f'{a}%{b}')[-1] + rest)
    return [REST] * (len(text) - len(row)) + row


def working(text):
    """What is heard from pass to pass: calls and what comes of them are one"""
    lines = [text]
    while '%' in lines[-1]:
        lines.append(decode(tool(lines[-1].replace('%', '=', 1))))
    return lines


task = mod.task._replace(
    name='calculator',
    wishes=(),  # all lines that are heard are questions
    working=working,
    next_line=next_line,
    between='lab.calculator:answer_calls',
    so_far=None,
    n_labels=0,
    hard=None,
)

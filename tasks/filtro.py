"""
Where do two steps from F lead? Edges of two graphs, one of letters and one of digits, in any order.

    F > E 5 > 7 E > H 8 > 5 ? F 2  ->  . . . . . . . . . . . . . . H

Asked is what is two steps behind F. The other graph is noise.
Aloud, a line of working takes a step:

    F > E 5 > 7 E > H 8 > 5 ? F 2
    F > E 5 > 7 E > H 8 > 5 ? E 1
    . . . . . . . . . . . . . . H

A path that ends too soon has no answer, and X says so. Some training questions ask for such a
path: so all numbers of steps are heard, though no path of more than three is ever walked.
"""
import re

import torch
import torch.nn.functional as F

from tasks.task import (
    REST,
    Split,
    Task,
    close_gaps,
    dice,
    encode,
    exactly,
    first_slot,
    last_line,
    last_slot,
    letters,
    lines_later,
    only_last,
    randint,
    symbol_at,
)

ZERO, NINE, TO, ASK, A, J, NONE = encode('09>?AJX')
ENDS = 0.25  # share of the training questions whose path ends too soon
ORDERS = 'random', 'alternating', 'blocked'
QUESTION = re.compile(r'((?:[A-J]>[A-J]|\d>\d)+)\?([A-J\d])([1-9])')


# --- in text ---

def working(text):
    """Lines of working; ValueError if it is no question"""
    parts = QUESTION.fullmatch(text)
    if not parts:
        raise ValueError
    edges, node, hops = parts.groups()
    leads = {edges[i]: edges[i + 2] for i in range(0, len(edges), 3)}
    if 3 * len(leads) < len(edges):  # a node leads to two
        raise ValueError
    lines = [text]
    for left in reversed(range(int(hops))):
        if node not in leads:
            return [*lines, 'X']
        node = leads[node]
        lines.append(f'{edges}?{node}{left}' if left else node)
    return lines


def solve(text):
    return working(text)[-1]


def one_step(text):
    return solve(text[:-1] + '1')


def last_edge(text):
    """Where the last edge of the graph that is asked leads"""
    edges, node, _ = QUESTION.fullmatch(text).groups()
    return [x for x in edges[2::3] if x.isdigit() == node.isdigit()][-1]


# --- in rows of slots ---

def next_line(q):
    """Rows (B, N) -> the next line of working (B, N); what is finished stays as it is"""
    at = torch.arange(q.shape[1], device=q.device)
    last = last_slot(q)
    node, hops = symbol_at(q, last - 1), symbol_at(q, last) - ZERO
    following = F.pad(q[:, 1:], (0, 1), value=REST)
    edge_at = first_slot((q == node) & (following == TO))
    target = symbol_at(q, edge_at + 2)
    line = torch.where(at == last - 1, target, q)
    line = torch.where(at == last, ZERO + hops - 1, line)
    line = torch.where(hops > 1, line, only_last(q, target))
    line = torch.where(target == REST, only_last(q, NONE), line)
    return torch.where((q == ASK).any(1, keepdim=True), line, q)


def answer(q):
    return last_line(q, next_line, 9)  # no path is longer


# --- drawing ---

def path(nodes, count, most):
    """Nodes (n, 10) -> edges from each to the next (n, most, 3), count (n, 1) of which are there"""
    begin, end = nodes[:, :most], nodes[:, 1:most + 1]
    each = torch.stack([begin, torch.full_like(begin, TO), end], 2)
    there = torch.arange(most, device=nodes.device) < count
    return torch.where(there[:, :, None], each, REST)


def in_order(order, asked, other, rand):
    """Edges of two graphs, (n, E, 3) and (n, O, 3) -> both in an order, (n, 3 * (E + O)). Each edge
    has a random key, and stands where this ranks among all keys."""
    n, E = asked.shape[:2]
    random = rand(n, E + other.shape[1])
    # Each edge's rank among those of its own graph
    ours = random[:, :E].argsort(1).argsort(1)
    others = random[:, E:].argsort(1).argsort(1)
    first = (rand(n, 1) < 1 / 2).long()  # which graph begins
    alternating = torch.cat([2 * ours + first, 2 * others + 1 - first], 1)
    blocked = torch.cat([ours + 100 * first, others + 100 * (1 - first)], 1)
    drawn = 3 * rand(n, 1)
    if order != 'any':
        drawn = 0 * drawn + ORDERS.index(order)
    keys = torch.where(drawn < 2, alternating, blocked)
    keys = torch.where(drawn < 1, random, keys)
    edges = torch.cat([asked, other], 1)
    source = keys.argsort(1)[:, :, None].expand_as(edges)
    return edges.gather(1, source).flatten(1)


def draw(n, generator, device, hops=(1, 3), edges=(3, 5), noise=(3, 5),
         order='any', kind='plain', aloud=False, level=1.0):
    """Paths of so many edges, (lowest, highest), and as many of the other graph as noise says.

    order: how the two are mixed: random, alternating, blocked (one behind the other), or any of
    these. kind='not_last': where the last edge of the graph does not lead to the answer.
    aloud=True asks a random line of the working."""
    rand, index, integers = dice(n, generator, device, level)
    n_hops = integers(*hops, 1)
    n_edges = integers(*edges, 1).maximum(n_hops)
    names = letters(n, generator, device)
    digits = ZERO + rand(n, 10).argsort(1)
    swap = rand(n, 1) < 1 / 2  # is the graph of digits asked?
    nodes = torch.where(swap, digits, names)

    # Where to begin, and how many steps to ask: too many where the path is to end too soon
    start = index(n_edges - n_hops + 1, n, 1)
    ends = rand(n, 1) < {'mixed': ENDS, 'ends': 1.0}.get(kind, 0.0)
    start = torch.where(ends, n_edges - n_hops, start)
    too_many = randint(n_hops + 1, torch.full_like(n_hops, NINE - ZERO), generator)
    count = torch.where(ends, too_many, n_hops)

    asked = path(nodes, n_edges, max(edges[1], hops[1]))
    other = path(torch.where(swap, names, digits), integers(*noise, 1), noise[1])
    rows = in_order(order, asked, other, rand)
    asks = torch.full_like(start, ASK)
    q = torch.cat([rows, asks, nodes.gather(1, start), ZERO + count], 1)
    q = close_gaps(q, q.shape[1])

    as_asked = torch.ones(n, dtype=torch.bool, device=device)
    if kind == 'not_last':
        is_letter = (rows >= A) & (rows <= J)
        is_node = (rows != TO) & (rows != REST)
        of_asked = torch.where(swap, ~is_letter, is_letter) & is_node
        last = last_slot(torch.where(of_asked, rows, REST))
        as_asked = symbol_at(rows, last)[:, 0] != answer(q).amax(1)
    if aloud:
        skip = index(n_hops + ends + 1, n, 1)
        q = lines_later(q, next_line, skip, hops[1] + 1)
    return q, as_asked


SPLITS = {
    'train': Split('training', 'train', dict(kind='mixed')),
    'val': Split('validation', 'val'),
    'val_ood': Split('validation, 4 steps', 'far', exactly(hops=4, edges=5)),
    'iid': Split('1 to 3 steps', 'test'),
    'not_last': Split('not the last edge', 'test', dict(kind='not_last', hops=(2, 3))),
    'ends': Split('the path ends', 'test', dict(kind='ends')),
    'random': Split('in random order', 'test', dict(order='random')),
    'alternating': Split('alternating', 'test', dict(order='alternating')),
    'blocked': Split('one behind the other', 'test', dict(order='blocked')),
    'ood_hops_5': Split('5 steps', 'far', exactly(hops=5, edges=5)),
    'ood_hops_8': Split('8 steps', 'far', exactly(hops=8, edges=8)),
    'ood_edges_8': Split('8 edges', 'far', exactly(edges=8)),
    'ood_noise_9': Split('9 edges of noise', 'far', exactly(noise=9)),
}

task = Task(
    name='filtro',
    symbols='ABCDEFGHIJ0123456789>?',
    example='F>E5>7E>H8>5?F2',
    draw=draw,
    splits=SPLITS,
    wishes=('level', 'aloud'),
    levels=('iid', 'ood_hops_5', 'ood_hops_8'),
    answer=answer,
    solve=solve,
    next_line=next_line,
    working=working,
    hides=True,
    shortcuts={'one step': one_step, 'the last edge': last_edge},
)

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
    Task,
    close_gaps,
    dice,
    encode,
    first_slot,
    last_slot,
    letters,
    lines_later,
    only_last,
    randint,
    symbol_at,
)

ZERO, NINE, TO, ASK, A, J, NONE = encode('09>?AJX')
ENDS = 0.25  # share of the training questions whose path ends too soon
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
    line = q
    for _ in range(9):
        line = next_line(line)
    return line


def draw(n, generator, device, hops=(1, 3), edges=(3, 5), noise=(3, 5), order='any', kind='plain',
         aloud=False, level=1.0):
    """Paths of so many edges, (lowest, highest), and as many of the other graph as noise says.

    order: how the two are mixed: random, alternating, blocked (one behind the other), or any of
    these. kind='not_last': where the last edge of the graph does not lead to the answer.
    aloud=True asks a random line of the working."""
    rand, between = dice(n, generator, device, level)

    def path(nodes, count, most):
        """Nodes (n, 10) -> edges from each to the next, (n, most, 3), of which `count` are there"""
        each = torch.stack([nodes[:, :most], torch.full_like(nodes[:, :most], TO),
                            nodes[:, 1:most + 1]], 2)
        there = torch.arange(most, device=device) < count
        return torch.where(there[:, :, None], each, REST)

    n_hops = between(*hops, 1)
    n_edges = between(*edges, 1).maximum(n_hops)
    names = letters(n, generator, device)
    digits = ZERO + rand(n, 10).argsort(1)
    swap = rand(n, 1) < 1 / 2  # which graph is asked
    nodes = torch.where(swap, digits, names)
    start = (rand(n, 1) * (n_edges - n_hops + 1)).long()
    ends = rand(n, 1) < {'mixed': ENDS, 'ends': 1.0}.get(kind, 0.0)
    start = torch.where(ends, n_edges - n_hops, start)
    too_many = randint(n_hops + 1, torch.full_like(n_hops, NINE - ZERO), generator)
    count = torch.where(ends, too_many, n_hops)
    most = max(edges[1], hops[1])
    asked = path(nodes, n_edges, most)
    other = path(torch.where(swap, names, digits), between(*noise, 1), noise[1])

    # The order: each edge has a key, and those of a graph a rank among themselves.
    keys = rand(n, most + noise[1])
    ranks = [keys[:, :most].argsort(1).argsort(1), keys[:, most:].argsort(1).argsort(1)]
    first = (rand(n, 1) < 1 / 2).long()
    alternating = torch.cat([2 * ranks[0] + first, 2 * ranks[1] + 1 - first], 1)
    blocked = torch.cat([ranks[0] + 100 * first, ranks[1] + 100 * (1 - first)], 1)
    which = 3 * rand(n, 1)
    which = {'random': 0 * which, 'alternating': 0 * which + 1, 'blocked': 0 * which + 2,
             'any': which}[order]
    keys = torch.where(which < 1, keys, torch.where(which < 2, alternating, blocked))
    all_edges = torch.cat([asked, other], 1)
    turn = keys.argsort(1)[:, :, None].expand_as(all_edges)
    rows = all_edges.gather(1, turn).flatten(1)
    query = [torch.full_like(start, ASK), nodes.gather(1, start), ZERO + count]
    q = torch.cat([rows, *query], 1)
    q = close_gaps(q, q.shape[1])

    as_asked = torch.ones(n, dtype=torch.bool, device=device)
    if kind == 'not_last':
        is_letter = (rows >= A) & (rows <= J)
        of_asked = torch.where(swap, ~is_letter, is_letter) & (rows != TO) & (rows != REST)
        last = last_slot(torch.where(of_asked, rows, REST))
        as_asked = symbol_at(rows, last)[:, 0] != answer(q).amax(1)
    if aloud:
        skip = (rand(n, 1) * (n_hops + ends + 1)).long()
        q = lines_later(q, next_line, skip, hops[1] + 1)
    return q, as_asked


task = Task(
    name='filtro',
    symbols='ABCDEFGHIJ0123456789>?',
    example='F>E5>7E>H8>5?F2',
    draw=draw,
    answer=answer,
    solve=solve,
    working=working,
    next_line=next_line,
    hides=True,
    shortcuts={'one step': one_step, 'the last edge': last_edge},
    splits={
        'train': dict(kind='mixed'),
        'val': {},
        'val_ood': dict(hops=(4, 4), edges=(5, 5)),
        'iid': {},
        'not_last': dict(kind='not_last', hops=(2, 3)),
        'ends': dict(kind='ends'),
        'random': dict(order='random'),
        'alternating': dict(order='alternating'),
        'blocked': dict(order='blocked'),
        'ood_hops_5': dict(hops=(5, 5), edges=(5, 5)),
        'ood_hops_8': dict(hops=(8, 8), edges=(8, 8)),
        'ood_edges_8': dict(edges=(8, 8)),
        'ood_noise_9': dict(noise=(9, 9)),
    },
    said={
        'iid': '1 to 3 steps',
        'not_last': 'not the last edge',
        'ends': 'the path ends',
        'random': 'in random order',
        'alternating': 'alternating',
        'blocked': 'one behind the other',
        'ood_hops_5': '5 steps',
        'ood_hops_8': '8 steps',
        'ood_edges_8': '8 edges',
        'ood_noise_9': '9 edges of noise',
    },
    levels=('iid', 'ood_hops_5', 'ood_hops_8'),
)

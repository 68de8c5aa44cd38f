"""
Several GPUs, one process each, as torchrun starts them. All draw every batch alike, and each takes
its part; without torchrun there is one process, and all of this does nothing.
"""
import os
import sys

import torch
import torch.distributed as dist
from torch.nn.utils import parameters_to_vector, vector_to_parameters

rank = int(os.environ.get('RANK', 0))  # of this process
world = int(os.environ.get('WORLD_SIZE', 1))


def start(kind):
    """Connect the processes, on devices of a kind. Only the first one talks from now on."""
    if world > 1:
        dist.init_process_group('nccl' if kind == 'cuda' else 'gloo')
    if rank:
        sys.stdout = open(os.devnull, 'w')


def part_of(n):
    """Which of n examples are this process's, a slice"""
    return slice(rank * n // world, (rank + 1) * n // world)


def average(tensors):
    """Make tensors their mean over the processes, in one message that a CUDA graph can hold"""
    if world > 1:
        flat = parameters_to_vector(tensors)
        dist.all_reduce(flat)
        vector_to_parameters(flat / world, tensors)


def told_by_first(x):
    """What the first process has -> the same in all"""
    told = [x]
    if world > 1:
        dist.broadcast_object_list(told)
    return told[0]


def in_any(flag, device):
    """Is it so in any of the processes? All must ask at the same time."""
    if world == 1:
        return flag
    n = torch.tensor(int(flag), device=device)
    dist.all_reduce(n)
    return bool(n)


def end():
    if world > 1:
        dist.barrier()  # no one leaves while another still listens
        dist.destroy_process_group()


def largest(x):
    """A tensor -> the largest of each number in any process"""
    if world > 1:
        dist.all_reduce(x, dist.ReduceOp.MAX)
    return x

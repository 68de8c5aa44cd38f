"""
The optimizer: AdamW, or Muon for the matrices inside the model, and AdamW for all else.
"""
import math

import torch
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

INSIDE = 'encoder.', 'decoder.', 'cross.', 'self_attention.'
BETAS = 0.9, 0.99  # of AdamW
MOMENTUM = 0.95    # of Muon


def orthogonal(matrices, steps=5):
    """Matrices (C, R) or (R, C), C >= R, R the same in all -> those nearest to them whose singular
    values are all about 1, by a Newton-Schulz iteration"""
    # They are one batch, whatever their C is. Zeros below the shorter ones change no singular
    # value, and stay zeros.
    tall = [m if m.shape[0] >= m.shape[1] else m.mT for m in matrices]
    zeros = tall[0].new_zeros(max(map(len, tall)), tall[0].shape[1])
    parts = [part for m in tall for part in (m, zeros[len(m):])]
    x = torch.cat(parts).view(len(tall), *zeros.shape)  # (n, longest C, R)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    # Half precision is enough, where it is fast.
    x = x.bfloat16() if x.is_cuda else x
    for _ in range(steps):
        square = x.mT @ x  # (n, R, R)
        factor = torch.baddbmm(square, square, square, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, x, factor, beta=3.4445)
    x = x.float()
    # The wide ones are laid down again, all in one copy.
    widest = max(m.shape[1] for m in matrices)
    lying = x[:, :widest].mT.contiguous()
    both = zip(x, lying, (m.shape for m in matrices), strict=True)
    return [m[:r] if r >= c else wide[:, :c] for m, wide, (r, c) in both]


class Muon(torch.optim.AdamW):
    """Groups with muon=True hold matrices. Each moves along the orthogonal matrix that is nearest
    to its mean gradient (Muon: Jordan et al., 2024), by as much as AdamW would move it (Liu et al.,
    2025, arXiv:2502.16982). All others move by AdamW. While found_inf is 1 nothing moves."""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_side = {}
            for p in group['params'] if group.get('muon') else ():
                if p.grad is not None:
                    by_side.setdefault(min(p.shape), []).append(p)
            for params in by_side.values():
                self.move(params, group['lr'], group['weight_decay'])
        super().step()

    def move(self, params, lr, decay):
        """Move matrices whose shorter sides are alike"""
        for p in params:
            if not self.state[p]:  # AdamW cannot be loaded without a step
                self.state[p].update(step=p.new_zeros(()), momentum=torch.zeros_like(p))
        momenta = [self.state[p]['momentum'] for p in params]
        # The gradient may be no number, and a CUDA graph has no ifs: it is replaced, and what comes
        # of it is multiplied by 0.
        moves = 1 - self.found_inf
        mean = _flatten_dense_tensors(momenta)
        gradient = _flatten_dense_tensors([p.grad for p in params])
        gradient = torch.where(moves > 0, gradient, mean)
        gradients = _unflatten_dense_tensors(gradient, params)
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        torch._foreach_lerp_(gradients, momenta, MOMENTUM)
        updates = orthogonal(gradients)
        torch._foreach_mul_(updates, [0.2 * math.sqrt(max(p.shape)) for p in params])
        lr = moves * lr
        torch._foreach_mul_(updates, lr)
        torch._foreach_mul_(params, 1 - lr * decay)
        torch._foreach_sub_(params, updates)
        for p in params:
            p.grad = None  # or AdamW would move it, too


def make_optimizer(named, lr, weight_decay, muon, capturable):
    """Named parameters -> their optimizer. capturable: a CUDA graph holds it, lr is a tensor."""
    inside, matrices, others = [], [], []
    for name, p in named:
        if p.dim() < 2 or 'conv' in name:
            others.append(p)
        elif muon and name.startswith(INSIDE):
            inside.append(p)
        else:
            matrices.append(p)
    groups = [{'params': matrices, 'weight_decay': weight_decay},
              {'params': others, 'weight_decay': 0.0}]
    settings = dict(lr=lr, betas=BETAS, fused=True, capturable=capturable)
    if not muon:
        return torch.optim.AdamW(groups, **settings)
    groups.append({'params': inside, 'weight_decay': weight_decay, 'muon': True})
    return Muon(groups, **settings)

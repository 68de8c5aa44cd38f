"""
The optimizer: AdamW, or Muon for the matrices inside the model, and AdamW for all else.
"""
import math

import torch

INSIDE = 'encoder.', 'decoder.', 'cross.', 'self_attention.'
BETAS = 0.9, 0.99  # of AdamW
MOMENTUM = 0.95    # of Muon


def orthogonal(x, steps=5):
    """Matrices (n, R, C) -> those nearest to them whose singular values are all about 1, by a
    Newton-Schulz iteration. Half precision is enough, where it is fast."""
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = x.to(torch.bfloat16 if x.is_cuda else torch.float32)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = 3.4445 * x + (2.0315 * square @ square - 4.7750 * square) @ x
    return (x.mT if is_tall else x).float()


class Muon(torch.optim.AdamW):
    """Groups with muon=True hold matrices. Each moves along the orthogonal matrix that is nearest
    to its mean gradient (Muon: Jordan et al., 2024), by as much as AdamW would move it (Liu et al.,
    2025, arXiv:2502.16982). All others move by AdamW. While found_inf is 1 nothing moves."""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for p in group['params'] if group.get('muon') else ():
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            # Matrices of one shape are one batch.
            for shape, params in by_shape.items():
                step_size = 0.2 * math.sqrt(max(shape)) * group['lr']
                self.move(params, step_size, group['lr'] * group['weight_decay'])
        super().step()

    def move(self, params, step_size, decay):
        """Move matrices of one shape"""
        for p in params:
            if not self.state[p]:  # AdamW cannot be loaded without a step
                self.state[p].update(step=p.new_zeros(()), momentum=torch.zeros_like(p))
        momenta = [self.state[p]['momentum'] for p in params]
        mean = torch.stack(momenta)
        gradient = torch.stack([p.grad for p in params])
        # The gradient may be no number, and a CUDA graph has no ifs: it is replaced, and what comes
        # of it is multiplied by 0.
        moves = 1 - self.found_inf
        gradient = torch.where(moves > 0, gradient, mean)
        mean = mean.lerp(gradient, 1 - MOMENTUM)
        direction = orthogonal(gradient.lerp(mean, MOMENTUM))
        update = moves * step_size * direction
        torch._foreach_copy_(momenta, mean.unbind())
        torch._foreach_mul_(params, 1 - moves * decay)
        torch._foreach_sub_(params, update.unbind())
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

"""
A checkpoint: what train.py saves and every other script loads.
"""
import os

import torch

from baselines import make_model
from model import JMambaConfig


def load_checkpoint(out_dir='', device='cpu', init_from='out_dir'):
    """The best checkpoint in out_dir, or the last one ('resume'), or assets/release.pt ('release')
    -> the model, in eval mode, and the checkpoint. ValueError if there is none that fits."""
    here = os.path.dirname(os.path.abspath(__file__))
    last = os.path.join(out_dir, 'ckpt.pt')
    paths = {'out_dir': [os.path.join(out_dir, 'best.pt'), last], 'resume': [last],
             'release': [os.path.join(here, 'assets', 'release.pt')]}
    if init_from not in paths:
        raise ValueError(f"init_from is 'out_dir' or 'release', not {init_from!r}")
    found = [path for path in paths[init_from] if os.path.exists(path)]
    if not found:
        hint = "leave out --init_from=resume"
        if init_from != 'resume':
            hint = "train a model with: python train.py config/mirror.py; or --init_from=release"
        raise ValueError(f"there is no {paths[init_from][-1]}; {hint}")
    try:
        checkpoint = torch.load(found[0], map_location=device, weights_only=True)
        args, weights = checkpoint['model_args'], checkpoint['model']
        checkpoint['config']['tasks'], checkpoint['config']['aloud'], checkpoint['iter_num']
    except Exception:  # a broken file fails in many ways: as a zip, a pickle, a dict
        raise ValueError(f"{found[0]} is not a checkpoint, or is damaged; bring back a whole copy "
                         "of it, or train into another folder") from None

    # Does it fit this file, which users are meant to change?
    wrong = {'settings that it does not know': args.keys() - JMambaConfig.__dataclass_fields__}
    if not any(wrong.values()):
        model = make_model(JMambaConfig(**args)).to(device)
        needed = model.state_dict()
        both = needed.keys() & weights.keys()
        wrong = {'missing': needed.keys() - both, 'too many': weights.keys() - both,
                 'of another shape': {k for k in both if needed[k].shape != weights[k].shape}}
    if any(wrong.values()):
        said = [f"{what}: {', '.join(sorted(keys))}" for what, keys in wrong.items() if keys]
        raise ValueError(f"{found[0]} was made by another model.py, which has been changed since "
                         f"({'; '.join(said)}); undo the change, or train into another folder")
    model.load_state_dict(weights)
    return model.eval(), checkpoint


@torch.no_grad()
def extended(model, config):
    """A model, made for fewer symbols and labels -> the same with those of a config behind them"""
    new = make_model(config).to(model.start.device)
    weights, more = model.state_dict(), new.state_dict()
    for name in ('logits.weight', 'logits.bias', 'so_far.weight', 'so_far.bias'):
        old = weights[name]
        weights[name] = more[name].clone()
        weights[name][:len(old)] = old
        if 'logits' in name:  # the last one stands for no symbol
            weights[name][len(old) - 1] = more[name][len(old) - 1]
            weights[name][-1] = old[-1]
    new.load_state_dict(weights)
    return new

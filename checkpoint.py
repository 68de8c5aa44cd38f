"""
A checkpoint: what train.py saves and every other script loads. And weights alone, with how they
were made, as safetensors, which hold no code:

$ python checkpoint.py --out_dir=out/mirror                            # writes model.safetensors
$ python sample.py --init_from=out/mirror/model.safetensors
$ python sample.py --init_from=hf:user/name                            # from the Hugging Face Hub
"""
import json
import os
import re
import zipfile

import torch

from baselines import make_model
from configurator import HERE, configure, fail
from model import JMambaConfig
from results import write_whole
from tasks import tool_of

RELEASE = os.path.join(HERE, 'assets', 'release.safetensors')
WEIGHTS = 'model.safetensors'


def path_from(out_dir, init_from):
    """Where the checkpoint lies that is asked for; ValueError if there is none"""
    last = os.path.join(out_dir, 'ckpt.pt')
    in_folder = [os.path.join(out_dir, name) for name in ('best.pt', WEIGHTS)]
    paths = {'out_dir': [*in_folder, last], 'resume': [last], 'release': [RELEASE]}
    if init_from.startswith('hf:'):
        return download(init_from[3:])
    if init_from.endswith(('.pt', '.safetensors')):
        paths[init_from] = [init_from]
    if init_from not in paths:
        if os.path.isdir(init_from):
            return path_from(init_from, 'out_dir')
        raise ValueError(f"there is no {init_from}; init_from is release, a folder, a file (.pt or "
                         ".safetensors) or hf:user/name")
    found = [path for path in paths[init_from] if os.path.exists(path)]
    if not found:
        hint = "leave out --init_from=resume"
        if init_from != 'resume':
            hint = "train a model with: python train.py config/mirror.py; or --init_from=release"
        raise ValueError(f"there is no {paths[init_from][-1]}; {hint}")
    return found[0]


def download(name):
    """user/name on the Hugging Face Hub -> the path of its weights here"""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise ValueError("hf: needs huggingface_hub: pip install huggingface_hub") from None
    try:
        return hf_hub_download(name, WEIGHTS)
    except Exception as e:  # of many kinds: no network, no such name, no such file
        why = str(e).strip().splitlines() or [type(e).__name__]
        raise ValueError(f"cannot get {WEIGHTS} of {name} from the Hub: {why[0]}") from None


def read(path, device):
    """A file -> what it holds, a dict; ValueError says what is wrong with it"""
    hint = "bring back a whole copy of it, or train into another folder"
    try:
        if path.endswith('.safetensors'):
            from safetensors import safe_open
            with safe_open(path, 'pt', device=str(device)) as f:
                checkpoint = json.loads(f.metadata()['jericho'])
                checkpoint['model'] = {key: f.get_tensor(key) for key in f.keys()}
        else:
            checkpoint = torch.load(path, map_location=device, weights_only=True)
        checkpoint['model_args'].keys(), checkpoint['model'].keys()
        checkpoint['config']['tasks'], checkpoint['config']['aloud'], checkpoint['iter_num']
        return checkpoint
    except ImportError:
        raise ValueError(f"{path} needs safetensors: pip install safetensors") from None
    except Exception as e:  # a broken file fails in many ways: as a zip, a pickle, a dict
        with open(path, 'rb') as f:
            start = f.read(2)
        cut = start == b'PK' and not zipfile.is_zipfile(path) or 'not fully covered' in str(e)
        what = "is cut: its end is missing" if cut else "is not a checkpoint, or is damaged"
        raise ValueError(f"{path} {what}; {hint}") from None


def load_checkpoint(out_dir='', device='cpu', init_from='out_dir'):
    """The best checkpoint in out_dir, or the last one ('resume'), or that of 'release', of another
    folder, of a file or of hf:user/name -> the model, in eval mode, and the checkpoint. ValueError
    if there is none that fits."""
    path = path_from(out_dir, init_from)
    checkpoint = read(path, device)
    args, weights = checkpoint['model_args'], checkpoint['model']

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
        said = [text.encode('unicode_escape').decode() for text in said]  # names may be damaged
        raise ValueError(f"{path} was made by another model.py, which has been changed since "
                         f"({'; '.join(said)}); undo the change, or train into another folder")
    model.load_state_dict(weights)
    model.tool = tool_of(checkpoint['config']['tasks'].split(','))
    return model.eval(), checkpoint


def results_of(out_dir, init_from):
    """Where the results of a checkpoint go: to its folder, or to out/ and its name"""
    if init_from == 'out_dir':
        return out_dir
    if os.path.isdir(init_from):
        return init_from
    name = os.path.splitext(init_from.removeprefix('hf:'))[0]
    return os.path.join('out', re.sub(r'\W+', '_', name).strip('_'))


@torch.no_grad()
def extended(model, config):
    """A model, made for fewer symbols and labels or without halting -> the same for a config"""
    new = make_model(config).to(model.start.device)
    weights, more = model.state_dict(), new.state_dict()
    for name in ('logits.weight', 'logits.bias', 'so_far.weight', 'so_far.bias'):
        old = weights[name]
        weights[name] = more[name].clone()
        weights[name][:len(old)] = old
        if 'logits' in name:  # the last one stands for no symbol
            weights[name][len(old) - 1] = more[name][len(old) - 1]
            weights[name][-1] = old[-1]
    new.load_state_dict({key: weights.get(key, more[key]) for key in more})
    return new


def write_weights(checkpoint, path):
    """A checkpoint's weights in half precision, and in the header how they were made"""
    from safetensors.torch import save
    of_training = 'model', 'optimizer', 'generator', 'turns', 'wrong', 'to_validate'
    header = {key: value for key, value in checkpoint.items() if key not in of_training}
    weights = {key: x.half().contiguous() for key, x in checkpoint['model'].items()}
    data = save(weights, {'format': 'pt', 'jericho': json.dumps(header)})
    write_whole(path, lambda f: f.write(data))


if __name__ == '__main__':
    out_dir = 'out/mirror'  # folder of the checkpoint
    init_from = 'out_dir'   # or a file
    path = ''               # what to write; '' is model.safetensors in out_dir
    configure(globals())
    try:
        path = path or os.path.join(out_dir, WEIGHTS)
        write_weights(load_checkpoint(out_dir, init_from=init_from)[1], path)
        print(f"wrote {path}, {os.path.getsize(path):,} bytes")
    except ImportError:
        fail("safetensors is missing: pip install safetensors")
    except ValueError as e:
        fail(e)
    except OSError as e:
        fail(f"cannot write {path}: {e.strerror}")

"""
A checkpoint: what train.py saves and every other script loads. And weights alone, with how they
were made, as safetensors, which hold no code:

$ python checkpoint.py --out_dir=out/mirror                            # writes model.safetensors
$ python sample.py --init_from=out/mirror/model.safetensors
$ python sample.py --init_from=hf:user/name                            # from the Hugging Face Hub
"""
from configurator import HERE, configure, fail

# --- settings ---
out_dir = 'out/mirror'  # folder of the checkpoint
init_from = 'out_dir'   # or a file
path = ''               # what to write; '' is model.safetensors in out_dir
configure(globals())

# isort: split
import json
import os
import re
import zipfile

import torch
from safetensors import safe_open
from safetensors.torch import save

from model import JMambaConfig, MiniJMamba
from system import write_whole

RELEASE = os.path.join(HERE, 'assets', 'release.safetensors')
WEIGHTS = 'model.safetensors'


def path_from(out_dir, init_from):
    """Where the checkpoint lies that is asked for; ValueError if there is none"""
    if init_from.startswith('hf:'):
        return download(init_from[3:])
    folder = out_dir if init_from in ('out_dir', 'resume') else init_from
    names = ['ckpt.pt'] if init_from == 'resume' else ['best.pt', WEIGHTS, 'ckpt.pt']
    paths = [os.path.join(folder, name) for name in names]
    hint = "train a model with: python train.py config/mirror.py; or --init_from=release"
    if init_from == 'resume':
        hint = "leave out --init_from=resume"
    elif init_from == 'release':
        paths = [RELEASE]
    elif init_from != 'out_dir' and not os.path.isdir(init_from):
        paths = [init_from]
        hint = "init_from is release, a folder, a file (.pt or .safetensors) or hf:user/name"
    for path in paths:
        if os.path.exists(path):
            return path
    raise ValueError(f"there is no {paths[-1]}; {hint}")


def download(name):
    """user/name on the Hugging Face Hub -> the path of its weights here"""
    try:
        from huggingface_hub import hf_hub_download
        return hf_hub_download(name, WEIGHTS)
    except ImportError:
        raise ValueError("hf: needs huggingface_hub: pip install huggingface_hub") from None
    except Exception as e:  # of many kinds: no network, no such name, no such file
        why = str(e).strip().partition('\n')[0] or type(e).__name__
        raise ValueError(f"cannot get {WEIGHTS} of {name} from the Hub: {why}") from None


def read(path, device):
    """A file -> what it holds, a dict; ValueError says what is wrong with it"""
    try:
        if path.endswith('.safetensors'):
            with safe_open(path, 'pt', device=str(device)) as f:
                checkpoint = json.loads(f.metadata()['jericho'])
                checkpoint['model'] = {key: f.get_tensor(key) for key in f.keys()}
        else:
            checkpoint = torch.load(path, map_location=device, weights_only=True)
        checkpoint['model_args'].keys(), checkpoint['model'].keys()
        checkpoint['config']['tasks'], checkpoint['config']['aloud'], checkpoint['iter_num']
        return checkpoint
    except Exception as e:  # a broken file fails in many ways: as a zip, a pickle, a dict
        with open(path, 'rb') as f:
            start = f.read(2)
        cut = start == b'PK' and not zipfile.is_zipfile(path) or 'not fully covered' in str(e)
        what = "is cut: its end is missing" if cut else "is not a checkpoint, or is damaged"
        hint = "bring back a whole copy of it, or train into another folder"
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
        model = MiniJMamba(JMambaConfig(**args)).to(device)
        needed = model.state_dict()
        both = needed.keys() & weights.keys()
        wrong = {'missing': needed.keys() - both, 'too many': weights.keys() - both,
                 'of another shape': {k for k in both if needed[k].shape != weights[k].shape}}
    if any(wrong.values()):
        said = [f"{what}: {', '.join(sorted(keys))}" for what, keys in wrong.items() if keys]
        said = '; '.join(said).encode('unicode_escape').decode()  # names may be damaged
        raise ValueError(f"{path} was made by another model.py, which has been changed since "
                         f"({said}); undo the change, or train into another folder")
    model.load_state_dict(weights)
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
    new = MiniJMamba(config).to(model.start.device)
    weights = new.state_dict()
    for name, old in model.state_dict().items():
        if name.startswith('logits.'):  # the last one stands for no symbol
            weights[name][-1] = old[-1]
            old = old[:-1]
        weights[name][:len(old)] = old
    return new


def write_weights(checkpoint, path):
    """A checkpoint's weights in half precision, and in the header how they were made"""
    of_training = 'model', 'optimizer', 'generator', 'task_random', 'wrong', 'to_validate'
    header = {key: value for key, value in checkpoint.items() if key not in of_training}
    weights = {key: x.half().contiguous() for key, x in checkpoint['model'].items()}
    data = save(weights, {'format': 'pt', 'jericho': json.dumps(header)})
    write_whole(path, lambda f: f.write(data))


if __name__ == '__main__':
    try:
        path = path or os.path.join(out_dir, WEIGHTS)
        write_weights(load_checkpoint(out_dir, init_from=init_from)[1], path)
        print(f"wrote {path}, {os.path.getsize(path):,} bytes")
    except ValueError as e:
        fail(e)
    except OSError as e:
        fail(f"cannot write {path}: {e.strerror}")

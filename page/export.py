"""
Write a page on which one asks the model in a browser, where nothing need be installed.

$ pip install onnx onnxscript                    # and npm, once
$ python -m page.export --init_from=release      # writes demo/, in half a minute
$ python -m http.server -d demo                  # then open http://localhost:8000

Any static host can serve demo/. It holds the page, settings.json with the alphabet, model.onnx.gz,
and onnxruntime-web, which runs the model in the browser. The model there is one pass, from sound to
sound; the page lets it hear its own answer until that stays the same. See page/README.md.
"""
from configurator import HERE, configure, fail, names_of

# --- settings ---
out_dir = 'out/mirror'  # folder of the checkpoint
init_from = 'out_dir'   # or release: the weights that come with the code; a file; hf:user/name
demo_dir = 'demo'       # where to write
configure(globals())

# isort: split
import copy
import functools
import gzip
import importlib
import json
import logging
import math
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import warnings

import numpy as np
import torch

import prepare
from audio.listen import LONGEST_QUESTION, SILENCE_BEHIND
from checkpoint import load_checkpoint
from model import JMambaConfig, mixer
from system import claim, write_whole
from tasks import SYMBOLS, TASKS
from think import CHANGE, difference, one_pass, with_silence

try:
    import onnx
    from onnxscript import optimizer
except ImportError:
    onnx = None  # main() says so

PAGE_FILES = 'index.html', 'jericho.js', 'sound.js'
RUNTIME = 'onnxruntime-web@1.20.1'
RUNTIME_FILES = 'ort.wasm.min.js', 'ort-wasm-simd-threaded.mjs', 'ort-wasm-simd-threaded.wasm'
MAX_PASSES = 64  # of a question


# --- the model as a graph ---

def scan_at_once(x, dt, A, B, C):
    """model.ssd in one chunk. A graph has no ifs, and the number of chunks depends on the length.
    x (B, T, H, P), dt (B, T, H), A (H,), B and C (B, T, N) -> y (B, T, H, P)"""
    T = x.shape[1]
    decay = (dt * A).cumsum(1).transpose(1, 2)  # (B, H, T)
    past = torch.ones(T, T, dtype=torch.bool).tril()
    between = decay[..., :, None] - decay[..., None, :]
    L = between.masked_fill(~past, -math.inf).exp()  # (B, H, T, T)
    scores = (C @ B.transpose(1, 2))[:, None] * L
    y = scores @ (x * dt[..., None]).transpose(1, 2)  # (B, H, T, P)
    return y.transpose(1, 2)


@torch.no_grad()
def exportable(model):
    """A model -> a copy that a graph can hold, with weights that float16 can: those of the release
    are such. ValueError if it has parts that are not of model.py."""
    usual = JMambaConfig()
    for part in ('layer', 'cross', 'self_attention', 'front'):
        if getattr(model.config, part) != getattr(usual, part):
            raise ValueError("only Mini-JMamba itself can be exported, not a model whose "
                             f"{part} is {getattr(model.config, part)}")
    net = copy.deepcopy(model).eval()
    net.hand_in(mixer=functools.partial(mixer, scan=scan_at_once))
    for p in net.parameters():
        p.copy_(p.half())
    return net


class OnePass(torch.nn.Module):
    """A question (1, S) of whole tokens and noise (S + token,) -> the answer (1, S), and by how
    much its sound differs from the question's (1,)"""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, question, noise):
        S = question.shape[1]
        lengths = S * torch.ones(1, dtype=torch.long)
        question = with_silence(self.net, question)
        spectrum = self.net.spectrum.stft(question)
        wave, _ = one_pass(self.net, question, spectrum, lengths, noise)
        after = self.net.spectrum.stft(wave)
        return wave[:, :S], difference(self.net, spectrum, after)


def inputs_of(net):
    """Inputs of OnePass to trace it with, and what torch.export is told of their shapes: a question
    may have any number of tokens"""
    token = net.config.token
    longest = int(LONGEST_QUESTION * prepare.SAMPLE_RATE)
    tokens = torch.export.Dim('tokens', min=2, max=longest // token)
    shapes = {'question': {1: token * tokens}, 'noise': {0: token * tokens + token}}
    return (torch.zeros(1, 20 * token), torch.zeros(21 * token)), shapes


def to_onnx(net):
    """What exportable gave -> onnx.ModelProto"""
    inputs, shapes = inputs_of(net)
    logging.disable(logging.WARNING)  # of what concerns the exporter alone
    with warnings.catch_warnings(action='ignore'):
        # What optimize=True does takes the small constant in Spectrum.magnitude for 0.
        program = torch.onnx.export(
            OnePass(net).eval(),
            inputs,
            dynamic_shapes=shapes,
            dynamo=True,
            optimize=False,
            verbose=False,
            input_names=['question', 'noise'],
            output_names=['answer', 'change'],
        )
        optimizer.inline(program.model)
        optimizer.fold_constants(program.model)
        optimizer.remove_unused_nodes(program.model)
        made = program.model_proto
    logging.disable(logging.NOTSET)
    shrink(made.graph)
    return made


def shrink(graph):
    """Store weights as float16, which loses nothing, and drop where in the code each node is from
    """
    nodes = []
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
        name = tensor.name
        numbers = onnx.numpy_helper.to_array(tensor)
        if numbers.dtype != np.float32 or numbers.size < 500:
            continue
        half = numbers.astype(np.float16)
        if (half == numbers).all():
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, name + '_half'))
            to_float = onnx.helper.make_node('Cast', [name + '_half'], [name],
                                             to=onnx.TensorProto.FLOAT)
            nodes.append(to_float)
    nodes.extend(graph.node)
    for node in nodes:
        del node.metadata_props[:]
        node.doc_string = ''
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)


# --- what goes beside it ---

def about(task):
    """What the page needs to know of a task"""
    text = importlib.import_module(f'tasks.{task.name}').__doc__
    first_sentence = re.match(r'.*?[.?!](?=\s)', ' '.join(text.split()))
    return {
        'name': task.name,
        'about': first_sentence.group(),
        'symbols': task.symbols,
        'example': task.example,
        'rest': task.slots(task.example) - len(task.example),  # silent slots behind a question
    }


def settings_of(model, tasks, aloud):
    """-> what the page needs to know, for settings.json"""
    return {
        'symbols': SYMBOLS,
        'lowest': prepare.LOWEST,     # hertz of the first symbol
        'spacing': prepare.SPACING,   # and from each to the next
        'lead': prepare.LEAD / 2,     # seconds, as all others in the middle of their range
        'tone': prepare.TONE,
        'gap': prepare.GAP,
        'fade': prepare.FADE,
        'loudness': prepare.LOUDNESS,
        'rate': prepare.SAMPLE_RATE,
        'token': model.config.token,  # samples
        'silence_behind': SILENCE_BEHIND,  # seconds, of a recording
        'longest': LONGEST_QUESTION,  # seconds
        'passes': MAX_PASSES if aloud else 1,
        'change': CHANGE,             # under which a sound counts as the same
        'tasks': [about(TASKS[name]) for name in tasks],
    }


def read_files(folder, names):
    """-> {name: bytes}"""
    files = {}
    for name in names:
        with open(os.path.join(folder, name), 'rb') as f:
            files[name] = f.read()
    return files


def runtime_files():
    """onnxruntime-web's files, those of node_modules/, or else from npm -> {name: bytes}"""
    dist = os.path.join(HERE, 'node_modules', 'onnxruntime-web', 'dist')
    if os.path.isdir(dist):
        return read_files(dist, RUNTIME_FILES)
    if not shutil.which('npm'):
        fail("onnxruntime-web comes by npm, which is not there; install Node.js from "
             "https://nodejs.org", 1)
    with tempfile.TemporaryDirectory() as fetched:
        command = ['npm', 'pack', RUNTIME, '--silent', '--pack-destination', fetched]
        npm = subprocess.run(command, capture_output=True, text=True)
        if npm.returncode:
            fail(f"npm could not fetch {RUNTIME}; is there a network?", 1)
        with tarfile.open(os.path.join(fetched, npm.stdout.split()[-1])) as package:
            package.extractall(fetched, filter='data')
        return read_files(os.path.join(fetched, 'package', 'dist'), RUNTIME_FILES)


def packed(files):
    """{name: bytes} -> the same, but large ones compressed: http.server does not do it"""
    made = {}
    for name, data in files.items():
        if name.endswith(('.onnx', '.wasm')):
            name, data = name + '.gz', gzip.compress(data, mtime=0)
        made[name] = data
    return made


def main():
    if onnx is None:
        fail("page.export needs onnx and onnxscript: pip install onnx onnxscript")
    try:
        model, checkpoint = load_checkpoint(out_dir, 'cpu', init_from)
        tasks = names_of(checkpoint['config'], 'tasks', TASKS)
        aloud = names_of(checkpoint['config'], 'aloud', TASKS)
        net = exportable(model)
        files = {**read_files(os.path.join(HERE, 'page'), PAGE_FILES), **runtime_files()}
        claim(demo_dir)
        # All is made before anything is written, so that demo_dir never holds half a page.
        files['settings.json'] = json.dumps(settings_of(model, tasks, aloud), indent=1).encode()
        files['model.onnx'] = to_onnx(net).SerializeToString()
        files = packed(files)
        for name, data in files.items():
            write_whole(os.path.join(demo_dir, name), lambda f, data=data: f.write(data))
    except ValueError as e:
        fail(e)
    except OSError as e:
        fail(f"cannot write to {demo_dir}: {e.strerror}", 1)
    total = sum(map(len, files.values()))
    runtime = sum(len(data) for name, data in files.items() if name.startswith('ort'))
    print(f"wrote {demo_dir}: {(total - runtime) / 1e6:.1f} MB, and the runtime of "
          f"{runtime / 1e6:.1f} MB")
    print(f"to open it: python -m http.server -d {demo_dir}, then go to http://localhost:8000")


if __name__ == '__main__':
    main()

"""
Write a page on which one asks the model in a browser, where nothing need be installed.

$ pip install onnx onnxscript              # and npm, once
$ python export.py --init_from=release     # writes demo/, in half a minute
$ python -m http.server -d demo            # then open http://localhost:8000

Any static host can serve demo/. It holds the page (page/ has its source), settings.json with the
alphabet, model.onnx.gz, and onnxruntime-web, which runs the model in the browser. The model there
is one pass, from sound to sound; the page lets it hear its own answer until that stays the same.
"""
import gzip
import inspect
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
from checkpoint import load_checkpoint
from configurator import HERE, configure, fail, names_of
from listen import ROOM
from model import Mamba2, MiniJMamba
from results import claim, write_json
from tasks import SYMBOLS, TASKS
from think import TONE, change, one_pass, with_silence

try:
    import onnx
    from onnxscript import optimizer
except ImportError:
    onnx = None

RUNTIME = 'onnxruntime-web@1.20.1'
RUNTIME_FILES = 'ort.wasm.min.js', 'ort-wasm-simd-threaded.mjs', 'ort-wasm-simd-threaded.wasm'
LONGEST = 60  # seconds of a question at most, as the scan takes all of it at once
PASSES = 64   # of a question at most


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
    return (scores @ (x * dt[..., None]).transpose(1, 2)).transpose(1, 2)


class OneChunk(Mamba2):
    def scan(self, u):
        return scan_at_once


@torch.no_grad()
def exportable(model):
    """A model -> the same with other scans, and weights that float16 holds. Those of the release
    are such."""
    net = MiniJMamba(model.config, OneChunk).eval()
    net.load_state_dict(model.state_dict())
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
        heard = self.net.spectrum.stft(question)
        wave, _ = one_pass(self.net, question, heard, lengths, noise)
        return wave[:, :S], change(self.net, heard, self.net.spectrum.stft(wave))


def to_onnx(net):
    """-> onnx.ModelProto, for questions of any number of tokens"""
    token = net.config.token
    tokens = torch.export.Dim('tokens', min=2, max=LONGEST * prepare.SAMPLE_RATE // token)
    shapes = {'question': {1: token * tokens}, 'noise': {0: token * tokens + token}}
    question, noise = torch.zeros(1, 20 * token), torch.zeros(21 * token)
    logging.disable(logging.WARNING)  # of what concerns the exporter alone
    with warnings.catch_warnings(action='ignore'):
        # What optimize=True does takes the small constant in Spectrum.magnitude for 0.
        program = torch.onnx.export(
            OnePass(net).eval(), (question, noise), dynamo=True, optimize=False, verbose=False,
            input_names=['question', 'noise'], output_names=['answer', 'change'],
            dynamic_shapes=shapes)
        graph = program.model
        optimizer.inline(graph)
        optimizer.fold_constants(graph)
        optimizer.remove_unused_nodes(graph)
        program = program.model_proto
    logging.disable(logging.NOTSET)
    shrink(program.graph)
    return program


def shrink(graph):
    """Store weights as float16, which loses nothing, and drop where in the code each node is from
    """
    nodes = []
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
        numbers, name = onnx.numpy_helper.to_array(tensor), tensor.name
        if numbers.dtype == np.float32 and numbers.size >= 500:
            half = numbers.astype(np.float16)
            if (half == numbers).all():
                tensor.CopyFrom(onnx.numpy_helper.from_array(half, name + '_half'))
                nodes.append(onnx.helper.make_node('Cast', [name + '_half'], [name],
                                                   to=onnx.TensorProto.FLOAT))
    nodes.extend(graph.node)
    for node in nodes:
        del node.metadata_props[:]
        node.doc_string = ''
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)


# --- what goes beside it ---

def about(task):
    """What the page needs to know of a task: what it is about, the first sentence of its file"""
    text = ' '.join(inspect.getmodule(task.solve).__doc__.split())
    return {
        'name': task.name,
        'about': re.match(r'.*?[.?!](?=\s)', text).group(),
        'symbols': task.symbols,
        'example': task.example,
        'rest': task.slots(task.example) - len(task.example),  # silent slots behind a question
    }


def add_runtime(folder):
    """Put onnxruntime-web's files into a folder: those of node_modules/, or else from npm"""
    dist = os.path.join(HERE, 'node_modules', 'onnxruntime-web', 'dist')
    with tempfile.TemporaryDirectory() as fetched:
        if not os.path.isdir(dist):
            if not shutil.which('npm'):
                fail("onnxruntime-web comes by npm, which is not there; install Node.js from "
                     "https://nodejs.org", 1)
            command = ['npm', 'pack', RUNTIME, '--silent', '--pack-destination', fetched]
            npm = subprocess.run(command, capture_output=True, text=True)
            if npm.returncode:
                fail(f"npm could not fetch {RUNTIME}; is there a network?", 1)
            with tarfile.open(os.path.join(fetched, npm.stdout.split()[-1])) as package:
                package.extractall(fetched, filter='data')
            dist = os.path.join(fetched, 'package', 'dist')
        for name in RUNTIME_FILES:
            shutil.copy(os.path.join(dist, name), folder)


def pack(path):
    """Compress a file: a page that is served by http.server is small only then"""
    with open(path, 'rb') as f:
        packed = gzip.compress(f.read(), mtime=0)
    with open(path + '.gz', 'wb') as f:
        f.write(packed)
    os.remove(path)


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
        'room': ROOM,                 # seconds, behind a recording
        'longest': LONGEST,
        'passes': PASSES if aloud else 1,
        'change': TONE,               # under which a sound counts as the same
        'tasks': [about(TASKS[name]) for name in tasks],
    }


if __name__ == '__main__':
    out_dir = 'out/mirror'  # folder of the checkpoint
    init_from = 'out_dir'   # or release: the weights that come with the code; a file; hf:user/name
    demo_dir = 'demo'       # where to write
    configure(globals())
    if not onnx:
        fail("export.py needs onnx and onnxscript: pip install onnx onnxscript")
    try:
        model, checkpoint = load_checkpoint(out_dir, 'cpu', init_from)
        tasks = names_of(checkpoint['config'], 'tasks', TASKS)
        aloud = names_of(checkpoint['config'], 'aloud', TASKS)
        c = model.config
        if (c.layer, c.attention, c.front) != ('mamba2', 'both', 'stft'):
            fail("only Mini-JMamba itself can be exported, without parts of baselines.py")

        # All is made in a folder of its own, so that demo_dir never holds half a page.
        with tempfile.TemporaryDirectory() as made:
            add_runtime(made)
            for name in os.listdir(os.path.join(HERE, 'page')):
                shutil.copy(os.path.join(HERE, 'page', name), made)
            write_json(os.path.join(made, 'settings.json'), settings_of(model, tasks, aloud))
            onnx.save(to_onnx(exportable(model)), os.path.join(made, 'model.onnx'))
            for name in os.listdir(made):
                if name.endswith(('.onnx', '.wasm')):
                    pack(os.path.join(made, name))
            names = os.listdir(made)
            sizes = {name: os.path.getsize(os.path.join(made, name)) for name in names}
            claim(demo_dir)
            for name in names:
                shutil.move(os.path.join(made, name), os.path.join(demo_dir, name))
    except ValueError as e:
        fail(e)
    except OSError as e:
        fail(f"cannot write to {demo_dir}: {e.strerror}", 1)
    runtime = sum(size for name, size in sizes.items() if name.startswith('ort'))
    page = sum(sizes.values()) - runtime
    print(f"wrote {demo_dir}: {page / 1e6:.1f} MB, and the runtime of {runtime / 1e6:.1f} MB")
    print(f"to open it: python -m http.server -d {demo_dir}, then go to http://localhost:8000")

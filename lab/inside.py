"""
What goes on inside a model, in pictures.

$ python -m lab.inside counting release   # can the depth of brackets be read off the states?
$ python -m lab.inside pointer release    # where the pointer points

release is the weights that come with the code; any other run is named by its folder.
"""
import sys

from configurator import bounds, configure, fail

# --- settings ---
out = ''           # the PNG to write; '' is named after what it shows
num_samples = 200  # questions for each point of counting
configure(globals(), [arg for arg in sys.argv[1:] if arg.startswith('-')])

# isort: split
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from checkpoint import load_checkpoint
from lab.figures import PER_CENT, plain, save
from model import MiniJMamba
from prepare import SAMPLE_RATE, make_batch, play_text
from tasks.bracket import depths

LENGTHS = 12, 20, 40, 100  # brackets; training has up to 13


@torch.no_grad()
def states_of_brackets(model, split, n, **lengths):
    """n bracket questions -> the encoder's token at the end of each bracket and a 1 (n, N, D + 1);
    depth there, and whether it has been below 0 (n, N, 2); where there is a bracket (n, N)"""
    generator = torch.Generator().manual_seed(7)
    b = make_batch('bracket', split, n, generator, **lengths)
    memory = model.encode(model.hear(b.question), b.question)  # (n, T, D)
    # The last token that hears nothing of the next bracket
    at = (b.rhythm.end * SAMPLE_RATE / model.config.token).long()
    at = at.clamp(1, memory.shape[1]) - 1
    index = at[..., None].expand(-1, -1, memory.shape[2])
    states = F.pad(memory.gather(1, index), (0, 1), value=1.0)
    targets = torch.stack(depths(b.asked), 2)
    return states.double(), targets.double(), b.asked >= 0


def fit(model, n):
    """The line, (D + 1, 2), that tells depth, and whether it has been below 0, from the states of n
    questions as short as in training"""
    states, targets, there = states_of_brackets(model, 'train', n)
    return torch.linalg.lstsq(states[there], targets[there]).solution


def told(model, line, length, n):
    """Are depth, rounded, and whether it has been below 0 what the line says, in n questions of a
    length? (n, length) each; and the share of places where it has not been below 0"""
    split = 'val' if length == LENGTHS[0] else 'val_ood'
    states, targets, _ = states_of_brackets(model, split, n, low=length, high=length)
    found = states @ line
    depth, below = targets.unbind(2)
    depth_right = found[..., 0].round() == depth
    below_right = (found[..., 1] > 0.5) == (below > 0.5)
    return depth_right[:, :length], below_right[:, :length], 1 - float(below.mean())


def counting(model, path, n):
    """Draw how well depth, and whether it has been below 0, can be told from the states of longer
    questions, n a length, and (dotted) from those of an untrained model: half of its heads never
    forget, so it counts a little."""
    torch.manual_seed(0)
    untrained = MiniJMamba(model.config).eval()
    fig = Figure(figsize=(9, 3.8), layout='constrained')
    left, right = fig.subplots(1, 2)
    plain(left, title='the depth, rounded', xlabel='bracket', ylabel='right (%)', ylim=PER_CENT)
    plain(right, title='has the depth been below 0?', xlabel='bracket', ylim=PER_CENT)
    dotted = {'linestyle': ':', 'color': '0.6', 'marker': ''}
    for net, name in ((model, 'trained'), (untrained, 'untrained')):
        line = fit(net, 5 * n)
        for length in LENGTHS:
            *hits, never = told(net, line, length, n)
            style = {'markevery': 0.1, 'label': f"length {length}"}
            for ax, right_at in zip((left, right), hits, strict=True):
                share = 100 * right_at.double().mean(0)  # of the questions, at each bracket
                ax.plot(range(1, length + 1), share, **style if net is model else dotted)
                print(f"{name}, length {length}, {ax.get_title()}: {share.mean():.1f} % right")
            print(f"always no would be right in {100 * never:.1f} %")
    left.plot([], [], label='untrained', **dotted)
    left.legend(frameon=False)
    save(fig, path)


@torch.no_grad()
def pointer_weights(model, question):
    """One question (1, S) -> (T, T): where each token of the answer, a row, is fetched from"""
    memory = model.encode(model.hear(question), question)
    # What is fetched from each token is the token's own number.
    numbers = torch.eye(memory.shape[1], device=memory.device)
    valid = torch.ones_like(numbers[:1], dtype=torch.bool)
    _, fetched = model.cross(model.start[None, None], memory, numbers[None], valid)
    return fetched[0]


def pointer(model, path, text='CABLEKAJ'):
    """Draw where in the question each token of the answer is fetched from"""
    if not model.config.pointer:
        raise ValueError("this model has no pointer")
    weights = pointer_weights(model, play_text(text)[None])
    seconds = len(weights) * model.config.token / SAMPLE_RATE
    fig = Figure(figsize=(5, 4), layout='constrained')
    ax = fig.subplots()
    image = ax.imshow(weights.numpy(), origin='lower', extent=(0, seconds, 0, seconds),
                      cmap='magma', vmin=0, vmax=1)
    fig.colorbar(image, ax=ax, label='attention')
    ax.set(xlabel='time in the question (s)', ylabel='time in the answer (s)',
           title=f"the pointer, asked {text}")
    save(fig, path)


def main():
    bounds(globals(), num_samples=1)
    named = [arg for arg in sys.argv[1:] if not arg.startswith('-')]
    if len(named) != 2 or named[0] not in ('counting', 'pointer'):
        fail("name what to draw, counting or pointer, and then one run")
    what, run = named
    path = out or what + '.png'
    try:
        init_from = 'release' if run == 'release' else 'out_dir'
        model, checkpoint = load_checkpoint(run, init_from=init_from)
        tasks = checkpoint['config']['tasks']
        if what == 'pointer':
            pointer(model, path)
        elif 'bracket' in tasks.split(','):
            counting(model, path, num_samples)
        else:
            raise ValueError(f"counting is for a model of bracket, not of {tasks}")
    except ValueError as e:
        fail(e)
    except OSError as e:
        fail(f"cannot write {path}: {e.strerror}")
    print(f"wrote {path}")


if __name__ == '__main__':
    main()

"""
What goes on inside a model, in pictures.

$ python inside.py counting release   # can the depth of brackets be read off the states?
$ python inside.py pointer release    # where the pointer points

release is the weights that come with the code; any other run is named by its folder.
"""
import sys

# This comes first: it tells matplotlib that pictures are only written.
from configurator import bounds, configure, fail

# isort: split
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from baselines import make_model
from checkpoint import load_checkpoint
from figures import plain, save
from prepare import SAMPLE_RATE, make_batch, play_text
from tasks.bracket import depths


@torch.no_grad()
def states_of_brackets(model, split, n, **more):
    """n bracket questions -> the encoder's token at the end of each bracket and a 1 (n, N, D + 1);
    depth there, and whether it has been below 0 (n, N, 2); where there is a bracket (n, N)"""
    generator = torch.Generator().manual_seed(7)
    b = make_batch('bracket', split, n, generator, **more)
    memory = model.encode(model.hear(b.question))
    # The last token that hears nothing of the next bracket
    at = (b.rhythm.end * SAMPLE_RATE / model.config.token).long()
    at = at.clamp(1, memory.shape[1]) - 1
    index = at[..., None].expand(-1, -1, memory.shape[2])
    states = F.pad(memory.gather(1, index), (0, 1), value=1.0)
    targets = torch.stack(depths(b.asked), 2)
    return states.double(), targets.double(), b.asked >= 0


def counting(model, path, n):
    """Fit a line from the encoder's states to the depth of brackets, and to whether it has been
    below 0, in questions as short as in training; draw how well it tells both in longer ones too,
    n a length, and (dotted) for an untrained model: half of its heads never forget, so it counts a
    little."""
    torch.manual_seed(0)
    untrained = make_model(model.config).eval()
    fig = Figure(figsize=(9, 3.8), layout='constrained')
    left, right = fig.subplots(1, 2)
    plain(left, title='the depth, rounded', xlabel='bracket', ylabel='right (%)', ylim=(-3, 103))
    plain(right, title='has the depth been below 0?', xlabel='bracket', ylim=(-3, 103))
    for net, name in ((model, 'trained'), (untrained, 'untrained')):
        states, targets, there = states_of_brackets(net, 'train', 5 * n)
        line = torch.linalg.lstsq(states[there], targets[there]).solution
        for length in (12, 20, 40, 100):
            split = 'val' if length == 12 else 'val_ood'
            states, targets, _ = states_of_brackets(net, split, n, low=length, high=length)
            found = states @ line
            depth_right = found[..., 0].round() == targets[..., 0]
            below_right = (found[..., 1] > 0.5) == (targets[..., 1] > 0.5)
            style = {'markevery': 0.1, 'label': f"length {length}"}
            if net is untrained:
                style = {'linestyle': ':', 'color': '0.6', 'marker': ''}
            for ax, hits in ((left, depth_right), (right, below_right)):
                hits = 100 * hits[:, :length].double().mean(0)
                ax.plot(range(1, length + 1), hits, **style)
                print(f"{name}, length {length}, {ax.get_title()}: {hits.mean():.1f} % right")
            never = 100 * (1 - targets[..., 1].mean())
            print(f"always no would be right in {never:.1f} %")
    left.plot([], [], label='untrained', **style)
    left.legend(frameon=False)
    save(fig, path)


def pointer(model, path, text='CABLEKAJ'):
    """Draw where in the question each token of the answer is fetched from"""
    if not model.config.pointer:
        raise ValueError("this model has no pointer")
    weights = model.pointer_weights(play_text(text)[None])
    seconds = len(weights) * model.config.token / SAMPLE_RATE
    fig = Figure(figsize=(5, 4), layout='constrained')
    ax = fig.subplots()
    image = ax.imshow(weights.numpy(), origin='lower', extent=(0, seconds, 0, seconds),
                      cmap='magma', vmin=0, vmax=1)
    fig.colorbar(image, ax=ax, label='attention')
    ax.set(xlabel='time in the question (s)', ylabel='time in the answer (s)',
           title=f"the pointer, asked {text}")
    save(fig, path)


if __name__ == '__main__':
    out = ''           # the PNG to write; '' is named after what it shows
    num_samples = 200  # questions for each point of counting
    flags = [a for a in sys.argv[1:] if a.startswith('-')]
    named = [a for a in sys.argv[1:] if a not in flags]
    configure(globals(), flags)
    bounds(globals(), num_samples=1)
    if len(named) != 2 or named[0] not in ('counting', 'pointer'):
        fail("name what to draw, counting or pointer, and then one run")
    what, run = named
    out = out or what + '.png'
    try:
        init_from = 'release' if run == 'release' else 'out_dir'
        model, checkpoint = load_checkpoint(run, init_from=init_from)
        if what == 'pointer':
            pointer(model, out)
        elif 'bracket' in checkpoint['config']['tasks']:
            counting(model, out, num_samples)
        else:
            fail(f"counting is for a model of bracket, not of {checkpoint['config']['tasks']}")
    except ValueError as e:
        fail(e)
    except OSError as e:
        fail(f"cannot write {out}: {e.strerror}")
    print(f"wrote {out}")

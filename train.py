"""
Train Mini-JMamba to answer in tones what it is asked in tones.

$ python train.py config/mirror.py                       # half a minute on two CPU cores
$ python train.py config/mirror.py --batch_size=32       # any setting below can be given
$ python train.py config/mirror.py --init_from=resume    # go on from out_dir/ckpt.pt
$ torchrun --standalone --nproc_per_node=2 train.py config/multitask.py    # two GPUs

Examples are made as it goes. out_dir gets ckpt.pt (the last), best.pt (the best on the validation
splits), log.jsonl, and at the end scores.json and samples/.
"""
import json
import math
import os
import random
import shlex
import signal
import sys
import time
from dataclasses import asdict, fields

import torch
import torch.distributed as dist
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

import configurator
import prepare
from baselines import ATTENTION, FRONTS, LAYERS, Transformer, make_model
from checkpoint import extended, load_checkpoint
from configurator import SEEDS, bounds, choices, configure, fail, for_each, names_of
from kernels import capture, compile_parts, kernel_missing
from losses import hide_from, last_line, losses
from model import CrossAttention, JMambaConfig, Mamba2, SelfAttention
from optimizer import make_optimizer
from replay import begin, go_on, new_frames, with_replay
from results import claim, clear_results, provenance, write_whole
from score import validate
from tasks import SYMBOLS, TASKS, n_so_far, taken

# --- settings: config files and --key=value override them ---
out_dir = ''             # where results go; '' is out/ and the config's name, and _s and the seed
eval_interval = 50       # iterations
log_interval = 10
eval_samples = 100       # questions of each validation split of each task
test_samples = -1        # questions of each test split: -1 is 1,000 on a GPU, 200 on a CPU; 0: none
overwrite = False        # remove what an earlier run left in out_dir
init_from = 'scratch'    # or resume; or weights to go on from: release, or the folder of a run
# data
tasks = 'mirror'         # some of tasks/, with a comma between them
mix = 'error'            # draw tasks by what validation gets wrong; or by shares: 1,1,2
difficulty = 1.0         # of training and validation, from 0 to 1: lengths, digits
curriculum = 0.0         # share of the updates in which the difficulty rises up to there
pauses = '0'             # silent slots put into a training question, at most: for all tasks or each
mixed_symbols = 0.0      # mirror: share of symbols drawn from those of all tasks, not from letters
sound = 'clean'          # or real: other tempos and instruments, rooms, noise (see prepare.py)
aloud = ''               # tasks in which each line of working answers the last; others at once
hide = 0.0               # share of the examples in which copies can only be pointed at: see Hiding
replay = 0.0             # aloud: share of the examples in which it hears itself: see replay.py
think = 64               # aloud: passes at most when it is asked
shuffled = False         # a control: every question gets another's answer
learns = ''              # the part of the model that learns, such as halt; '' is all of it
batch_size = 16          # examples made for each forward and backward, on all GPUs together
gradient_accumulation_steps = 1  # of those for each update
# model: each field of JMambaConfig, see model.py, is a setting too
model_settings = {f.name: f.default for f in fields(JMambaConfig)}
del model_settings['n_symbols'], model_settings['n_so_far']  # which follow from the tasks
globals().update(model_settings)  # d_model, n_head, ...
# losses: their weights; 0 turns one off
w_frames = 1.0           # L1 + L2 of the compressed frames
w_symbols = 0.1          # cross-entropy of each token's symbol; the alignment is known
w_ctc = 0.0              # instead of it: of all symbols, of any alignment (Graves et al., 2006)
w_so_far = 0.1           # cross-entropy of what the question comes to so far, from the encoder
w_halt = 0.1             # with halting: of whether the answer is the last line of the working
# optimizer
learning_rate = 2e-3     # the highest, after the warm-up
max_iters = 300          # updates
warmup_iters = 20        # linear up to learning_rate
min_lr = 2e-4            # the lowest, to which a cosine leads at the end
weight_decay = 0.1       # of matrices only
muon = False             # matrices inside the model move by Muon, all else by AdamW
grad_clip = 1.0          # 0 turns it off
# system
device = 'auto'          # auto, cpu, cuda, mps
dtype = 'auto'           # auto, float32, bfloat16
compile = False          # torch.compile, and on a GPU one CUDA graph for each task
seed = 1337              # of weights and examples
config = configure(globals())

# --- check the settings ---
rank = int(os.environ.get('RANK', 0))  # of this process, if torchrun has started several
world = int(os.environ.get('WORLD_SIZE', 1))
names = names_of(config, 'tasks', TASKS) or fail(f"tasks are some of {', '.join(TASKS)}")
spoken = names_of(config, 'aloud', [t for t in names if TASKS[t].working])
pauses_of = for_each(config, 'pauses', names, int)
shares = None if mix == 'error' else for_each(config, 'mix', names, float)
# What is worked out at once leaves little to copy, and nothing to hide.
hiding = [t for t in names if hide and TASKS[t].hides and (t in spoken or not TASKS[t].working)]
choices(config, sound=('clean', 'real'), dtype=('auto', 'float32', 'bfloat16'),
        ssd=('auto', 'torch', 'mamba_ssm'), layer=LAYERS, attention=ATTENTION, front=FRONTS)
bounds(config, batch_size=1, gradient_accumulation_steps=1, eval_interval=1, log_interval=1,
       eval_samples=1, think=1, max_iters=1, warmup_iters=0, test_samples=-1, learning_rate=0,
       min_lr=0, weight_decay=0, grad_clip=0, w_frames=0, w_symbols=0, w_ctc=0, w_so_far=0,
       w_halt=0, hide=(0, 1), replay=(0, 1), difficulty=(0, 1), curriculum=(0, 1),
       mixed_symbols=(0, 1), seed=SEEDS)
sizes = {'n_symbols': len(SYMBOLS), 'n_so_far': n_so_far()}
try:
    c = JMambaConfig(**sizes, **{key: config[key] for key in model_settings})
except ValueError as e:
    fail(e)
for is_wrong, why in (
    (shares and not sum(shares.values()), "mix must leave a share to one of the tasks"),
    (batch_size % world, f"batch_size must be a multiple of the {world} processes"),
    (hiding and batch_size // world % 2, "hide needs an even number of examples in each process"),
    (hide and not c.pointer, "hide needs the pointer: what is hidden can only be pointed at"),
    (prepare.BLOCK % c.token, f"patch must divide {c.patch * prepare.BLOCK // c.token} frames"),
    (not w_frames + w_symbols + w_ctc, "with every loss turned off nothing is learned"),
    (w_ctc and compile, "w_ctc needs compile=False: a CUDA graph cannot hold it"),
    (c.ssd == 'mamba_ssm' and kernel_missing(), f"use ssd=auto: for mamba_ssm, {kernel_missing()}"),
):
    if is_wrong:
        fail(why)

# --- set up ---
out_dir = out_dir or os.path.join('out', configurator.run_name('_'.join(names), seed))
device = configurator.pick_device(device)
kind = torch.device(device).type
if world > 1:
    dist.init_process_group('nccl' if kind == 'cuda' else 'gloo')
if rank:  # only the first process talks
    sys.stdout = open(os.devnull, 'w')
dtype = configurator.pick_dtype(dtype, kind)
amp = torch.autocast(kind, getattr(torch, dtype), dtype != 'float32')
torch.manual_seed(seed)
torch.backends.cuda.matmul.allow_tf32 = True
generator = torch.Generator(device).manual_seed(seed)  # of the examples
turns = random.Random(seed)                            # of the tasks
try:
    if init_from == 'scratch':
        model = make_model(c).to(device)
    else:
        folder = out_dir if init_from == 'resume' else init_from
        model, checkpoint = load_checkpoint(out_dir, device, init_from)
        was = {'muon': False, **checkpoint['config'], **asdict(model.config)}
        now = {**config, **asdict(c)}
        fixed = asdict(c).keys() - {'ssd', 'n_symbols', 'n_so_far', 'halting'}
        if init_from == 'resume':
            fixed |= {'tasks', 'aloud', 'curriculum', 'seed', 'muon', *asdict(c)} - {'ssd'}
        for key in (key for key in fixed if was[key] != now[key]):
            fail(f"{folder} was trained with {key}={was[key]}; to go on, leave it so")
        model = extended(model, c)
        if init_from != 'resume' and os.path.realpath(folder) == os.path.realpath(out_dir):
            fail(f"{folder} would be overwritten: give another --out_dir, or --init_from=resume")
    if not rank:
        claim(out_dir)
        if init_from != 'resume':
            clear_results(out_dir, overwrite)
    log_path = os.devnull if rank else os.path.join(out_dir, 'log.jsonl')
    log_file = open(log_path, 'a' if init_from == 'resume' else 'w', buffering=1)
except ValueError as e:
    fail(e)
except OSError as e:
    fail(f"cannot write to {out_dir}: {e.strerror}")
learned = [(n, p) for n, p in model.named_parameters() if n.startswith(learns)]
learned or fail(f"learns names no part of the model: {learns}")
for name, p in model.named_parameters():
    p.requires_grad_(name.startswith(learns))
print(f"{sum(p.numel() for _, p in learned):,} parameters on {device}, tasks: {tasks}")

cuda_graphs = compile and kind == 'cuda'
lr = torch.tensor(learning_rate, device=device) if cuda_graphs else learning_rate
optimizer = make_optimizer(learned, lr, weight_decay, muon, cuda_graphs)
skipped, in_a_row = torch.zeros(2, dtype=torch.int64, device=device)  # updates that are no numbers
iter_num, best, seconds, to_validate = 0, -1.0, 0.0, False  # True: a stop came in between
wrong = {t: 1.0 for t in names}  # share of the validation questions
level = torch.full((), difficulty, device=device)  # a CUDA graph reads it there
if init_from == 'resume':
    try:
        saved = checkpoint['optimizer']
        for group, now in zip(saved['param_groups'], optimizer.param_groups, strict=True):
            group.update({k: now[k] for k in now if k != 'params'})  # the settings of this run
        optimizer.load_state_dict(saved)
        state = checkpoint['generator'].cpu()
        if len(state) == len(generator.get_state()):
            generator.set_state(state)
        else:
            print("random numbers of another kind of device: examples are drawn anew")
            generator.manual_seed(seed + checkpoint['iter_num'])
        turns.setstate((3, tuple(checkpoint['turns']), None))
        iter_num, best, seconds = (checkpoint[k] for k in ('iter_num', 'best', 'seconds'))
        wrong, to_validate = checkpoint['wrong'], checkpoint.get('to_validate', False)
    except Exception:  # of any kind, if the file is damaged
        fail(f"{out_dir}/ckpt.pt cannot be resumed: it holds weights only, or is damaged")


def save(name):
    if rank:
        return
    contents = {
        'model_args': asdict(model.config), 'model': model.state_dict(), 'config': config,
        'tones': {c: prepare.LOWEST + prepare.SPACING * i for i, c in enumerate(SYMBOLS)},
        'provenance': provenance(), 'optimizer': optimizer.state_dict(),
        'generator': generator.get_state(), 'turns': list(turns.getstate()[1]), 'wrong': wrong,
        'iter_num': iter_num, 'best': best, 'seconds': seconds, 'to_validate': to_validate,
    }
    path = os.path.join(out_dir, name)
    try:
        write_whole(path, lambda f: torch.save(contents, f))
    except OSError as e:
        bar.close()
        fail(f"cannot write {path} ({e.strerror}); what was saved before is whole", 1)


# --- one update ---

weights = {key: config[key] for key in ('w_frames', 'w_symbols', 'w_ctc', 'w_so_far', 'w_halt')}


def examples(task):
    """For each forward of an update: batch, frames that may be generated, Hiding or None"""
    wishes = taken(task, level=level, pairs=task in hiding, mixed_symbols=mixed_symbols)
    # All processes draw every batch alike, and each takes its part.
    part = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
    for _ in range(gradient_accumulation_steps):
        batch = prepare.make_batch(task, 'train', batch_size, generator, device, part, shuffled,
                                   sound, aloud=task in spoken, pauses=pauses_of[task], **wishes)
        may_generate = hidden = None
        if c.pointer:  # what is repeated is not to be learned by heart
            may_generate = new_frames(task, batch)
        if task in hiding:
            hidden = hide_from(batch, hide, batch_size, part, c, generator)
        yield batch, may_generate, hidden


def average(tensors):
    """Make tensors their mean over the processes, in one message that a CUDA graph can hold"""
    flat = parameters_to_vector(tensors)
    dist.all_reduce(flat)
    vector_to_parameters(flat / world, tensors)


def step(task, made):
    """One update from examples(task): forward, backward, optimizer -> the numbers to log"""
    for drawn, may_generate, hidden in made:
        batch = drawn
        if task in conversations:
            batch, may_generate, hidden = with_replay(task, drawn, may_generate, hidden,
                                                      conversations[task], generator)
        is_last = last_line(task, batch, task in spoken) if c.halting else None
        with amp:
            answer = model(batch.question, batch.lengths, may_generate, hidden)
            parts = losses(model, *answer, batch, hidden, is_last, task, weights, task in spoken)
            loss = sum(weights[k] * v for k, v in parts.items())
        (loss / gradient_accumulation_steps).backward()
        if task in conversations:
            go_on(task, model, answer[0], conversations[task], drawn, generator)
    numbers = {'loss': loss.detach(), **{k[2:]: v.detach() for k, v in parts.items()}}
    if world > 1:
        average([p.grad for p in model.parameters() if p.grad is not None])
        average(list(numbers.values()))
    norm = clip_grad_norm_(model.parameters(), grad_clip or math.inf)
    finite = torch.isfinite(norm + numbers['loss'])
    in_a_row.copy_(torch.where(finite, 0, in_a_row + 1))
    skipped.add_(~finite)
    optimizer.found_inf = 1 - finite.float()  # 1: the fused optimizer leaves all as it is
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {**numbers, 'norm': norm, 'skipped': skipped, 'in a row': in_a_row}


if compile:
    prepare.BLOCK *= 4  # tasks of about as long questions share what is compiled
    compile_parts(model, (Mamba2, SelfAttention, CrossAttention, Transformer))
    for part in ('play', 'reverberate', 'coloured', 'overdriven'):
        setattr(prepare, part, torch.compile(getattr(prepare, part), dynamic=False))
    losses = torch.compile(losses, dynamic=False)
n_replayed = 2 * round(replay * batch_size / world / 2)
conversations = {t: begin(next(examples(t))[0], n_replayed) for t in spoken if n_replayed}
graphs = {}


def capture_step(task):
    """step() as a CUDA graph, in which the next examples are made beside this update"""
    made, side = list(examples(task)), torch.cuda.Stream()

    def update():
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            following = list(examples(task))
        numbers = step(task, made)
        torch.cuda.current_stream().wait_stream(side)
        for now, then in zip(tree_leaves(made), tree_leaves(following), strict=True):
            if now is not None:
                now.copy_(then)
        return numbers

    return *capture(update, generator), made  # which the graph reads and writes: it must live on


def get_lr(it):
    # 1. Linear warm-up
    warmup = min(1, (it + 1) / (warmup_iters + 1))
    # 2. Cosine down to min_lr
    progress = max(0, it - warmup_iters) / max(1, max_iters - warmup_iters)
    above = 0.5 * (learning_rate - min_lr) * (1 + math.cos(math.pi * progress))
    return (min_lr + above) * warmup


def validate_and_save():
    """Validate, and save the checkpoint -> False if an end was asked for before it was done"""
    global wrong, best, seconds, clock, to_validate
    found = [None]
    if not rank:
        with configurator.at_once():
            found = [validate(model, names, spoken, eval_samples, seed + 1, device, think, sound,
                              difficulty)]
    if world > 1:  # what follows from it must be the same everywhere
        dist.broadcast_object_list(found)
    found, = found  # {'val': {task: exact match}, 'val_ood': ..., ...}
    if not found:
        return False
    to_validate = False
    right = {t: (found['val'][t] + found['val_ood'][t]) / 2 for t in names}
    wrong = {t: 1 - x for t, x in right.items()}
    score = sum(right.values()) / len(right)
    better, best = score >= best, max(best, score)
    seconds, clock = seconds + time.time() - clock, time.time()
    row = {'iter': iter_num, 'seconds': round(seconds, 2), 'level': float(level), 'odds': odds}
    print(json.dumps({**row, **found}), file=log_file)
    shown = ', '.join(f"{t} {found['val'][t]:.4f} {found['val_ood'][t]:.4f}" for t in names)
    configurator.say(f"iter {iter_num}/{max_iters} | validation exact match, in and out of "
                     f"distribution: {shown} | {seconds:.1f} s", bar)
    if better:  # first: a run that is killed in between does this evaluation again
        save('best.pt')
    save('ckpt.pt')
    return True


# --- the loop ---
stop = configurator.catch_signals()
bar = tqdm(total=max_iters, initial=iter_num, unit='it', disable=True if rank else None)
clock, bad, odds = time.time(), 0, shares
ended = to_validate and not validate_and_save()  # what a stop left undone
while iter_num < max_iters and not ended:
    lr = get_lr(iter_num)
    for group in optimizer.param_groups:
        group['lr'] = group['lr'].fill_(lr) if cuda_graphs else lr

    # --- step ---
    done = 1
    odds = shares or {t: max(wrong[t], 0.1) for t in names}  # so that none is forgotten
    task = turns.choices(names, [odds[t] for t in names])[0]
    if curriculum:
        level.fill_(difficulty * min(1, iter_num / (curriculum * max_iters)))
    if not cuda_graphs:
        numbers = step(task, examples(task))
    else:
        if task not in graphs:
            graphs[task] = capture_step(task)
            done += 3  # its warm-up steps count
        graphs[task][0].replay()
        numbers = graphs[task][1]
    iter_num += done
    bar.update(done)
    log_now = iter_num % log_interval < done
    evaluate_now = iter_num % eval_interval < done or iter_num >= max_iters
    ended = bool(stop) and world == 1
    if world > 1 and (log_now or evaluate_now):  # all stop at the same iteration
        any_stop = torch.tensor(len(stop), device=device)
        dist.all_reduce(any_stop)
        ended = bool(any_stop)

    # --- end after updates that were no numbers; nothing bad has reached the weights ---
    if log_now or evaluate_now:
        values = {k: float(v) for k, v in numbers.items()}  # waits for the GPU
        bad = values.pop('in a row')
        if bad >= 5 or bad and iter_num >= max_iters:
            bar.close()
            graphs.clear()  # or the connection between processes could not close
            fail(f"{int(skipped)} updates were no numbers and were skipped, the last {int(bad)} in "
                 "a row; try a lower learning_rate or dtype=float32, with --init_from=resume", 1)

    # --- log ---
    if log_now:
        now = seconds + time.time() - clock
        row = {'iter': iter_num, 'seconds': round(now, 2), 'task': task, 'lr': lr, **values}
        print(json.dumps(row), file=log_file)
        shown = ' '.join(f"{k} {v:.4f}" for k, v in values.items() if k != 'skipped' or v)
        configurator.say(f"iter {iter_num}/{max_iters} | {task} | {shown} | lr {lr:.1e} | "
                         f"{now:.1f} s", bar)

    # --- evaluate; weights that have just led to no numbers are not worth keeping ---
    if evaluate_now and not bad:
        to_validate = True
        ended = ended or not validate_and_save()

# --- the end ---
bar.close()
if ended:
    seconds += time.time() - clock
    save('ckpt.pt')
graphs, numbers = {}, None  # they hold gigabytes, and the connection between processes
torch.cuda.empty_cache()
if world > 1:
    dist.destroy_process_group()
if ended:
    again = [a for a in sys.argv if not a.startswith(('--init_from=', '--overwrite='))]
    again += ['--init_from=resume']
    runner = 'python' if world == 1 else f'torchrun --standalone --nproc_per_node={world}'
    configurator.say(f"stopped at iteration {iter_num}, saved in {out_dir}/ckpt.pt; go on with: "
                     f"{runner} {shlex.join(again)}", bar)
    sys.exit((stop or [128 + signal.SIGTERM])[0])
n_examples = iter_num * batch_size * gradient_accumulation_steps
memory = f", {torch.cuda.max_memory_reserved() / 2 ** 30:.1f} GiB" if kind == 'cuda' else ''
configurator.say(f"trained {iter_num} iterations, {n_examples:,} examples, in {seconds:.1f} s"
                 f"{memory}", bar)

# --- what it learned: the two commands a user would run ---
if test_samples < 0:
    test_samples = 200 if kind == 'cpu' else 1000
if test_samples and not rank:
    flags = f'--out_dir={out_dir}', f'--device={device}', f'--think={think}'
    configurator.run_script('score.py', *flags, f'--num_samples={test_samples}')
    configurator.run_script('sample.py', *flags, '--num_samples=4')

"""
Train Mini-JMamba to answer in tones what it is asked in tones.

$ python train.py config/mirror.py                       # half a minute on two CPU cores
$ python train.py config/mirror.py --batch_size=32       # any setting below can be given
$ python train.py config/mirror.py --init_from=resume    # go on from out_dir/ckpt.pt
$ torchrun --standalone --nproc_per_node=2 train.py config/multitask.py    # two GPUs

Examples are made as it goes. out_dir gets ckpt.pt (the last), best.pt (the best on the validation
splits), log.jsonl, and at the end scores.json and samples/.
"""
from configurator import HERE, SEEDS, bounds, choices, configure, fail, for_each, names_of

# --- settings: config files and --key=value override them ---
# run
out_dir = ''             # where results go; '' is out/ and the config's name, and _s and the seed
init_from = 'scratch'    # or resume; or weights to go on from: release, or the folder of a run
overwrite = False        # remove what an earlier run left in out_dir
eval_interval = 50       # iterations
log_interval = 10
eval_samples = 100       # questions of each validation split of each task
test_samples = -1        # questions of each test split: -1 is 1,000 on a GPU, 200 on a CPU; 0: none
seed = 1337              # of weights and examples
# data
tasks = 'mirror'         # some of tasks/, with a comma between them
aloud = ''               # tasks in which each line of working answers the last; others at once
mix = 'error'            # draw tasks by what validation gets wrong; or by shares: 1,1,2
difficulty = 1.0         # of training and validation, from 0 to 1: lengths, digits
curriculum = 0.0         # share of the updates in which the difficulty rises up to there
pauses = '0'             # silent slots put into a training question, at most: for all tasks or each
mixed_symbols = 0.0      # mirror: share of symbols drawn from those of all tasks, not from letters
sound = 'clean'          # or real: other tempos and instruments, rooms, noise (see prepare.py)
hide = 0.0               # share of the examples in which copies can only be pointed at: see Hiding
replay = 0.0             # aloud: share of the examples in which it hears itself: see lessons.py
think = 64               # aloud: passes at most when it is asked
shuffled = False         # a control: every question gets another's answer
batch_size = 16          # examples made for each forward and backward, on all GPUs together
gradient_accumulation_steps = 1  # of those for each update
# model: see JMambaConfig
d_model = 128            # width of a token
n_encoder = 6            # layers that hear the question
n_decoder = 4            # layers that play the answer, half before the self-attention
d_state = 64             # of a Mamba-2 head
head_dim = 32            # of a Mamba-2 head
n_head = 4               # attention heads
counting = 0.5           # share of the Mamba-2 heads that never forget
patch = 5                # frames in a token: 50 ms, three tokens a symbol
halting = False          # one more head says whether what is played is the answer
freeze = True            # the Mamba-2 states stand still while nothing sounds
pointer = True           # False: every frame is generated
points_at = 'same'       # which time, with commas: same, end (backwards), again
layer = 'Mamba2'         # or another class, such as lab.baselines:LSTM
cross = 'CrossAttention'
self_attention = 'SelfAttention'
front = 'stft'           # what the encoder hears
# losses: their weights; 0 turns one off
w_frames = 1.0           # L1 + L2 of the compressed frames
w_symbols = 0.1          # cross-entropy of each token's symbol; the alignment is known
w_so_far = 0.1           # cross-entropy of what the question comes to so far, from the encoder
w_halt = 0.1             # with halting: of whether the answer is the last line of the working
# optimizer
learning_rate = 2e-3     # the highest, after the warm-up
min_lr = 2e-4            # the lowest, at the end
max_iters = 300          # updates; the learning rate falls by a cosine until then
warmup_iters = 20        # linear up to learning_rate
weight_decay = 0.1       # of matrices only
muon = False             # matrices inside the model move by Muon, all else by AdamW
grad_clip = 1.0          # 0 turns it off
learns = ''              # the part of the model that learns, such as halt; '' is all of it
# system
device = 'auto'          # auto, cpu, cuda, mps
dtype = 'auto'           # auto, float32, bfloat16
compile = False          # torch.compile, and on a GPU a CUDA graph for each task and window
ssd = 'auto'             # the scan: torch, mamba_ssm, or auto: whichever is the fastest
costs = False            # say what an update costs, part by part, and end
config = configure(globals())

# isort: split
import json
import math
import os
import random
import re
import shlex
import signal
import sys
import time
from dataclasses import asdict, fields
from functools import partial

import torch
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

import fast
import lessons
import prepare
import system
from checkpoint import extended, load_checkpoint
from exam import validate
from fast import processes
from model import JMambaConfig, MiniJMamba, part_named
from optimizer import make_optimizer
from tasks import SYMBOLS, TASKS, check, n_labels, taken

# --- check the settings ---
rank, world = processes.rank, processes.world
names = names_of(config, 'tasks', TASKS) or fail(f"tasks are some of {', '.join(TASKS)}")
spoken = names_of(config, 'aloud', [t for t in names if TASKS[t].working])
pauses_of = for_each(config, 'pauses', names, int)
shares = None if mix == 'error' else for_each(config, 'mix', names, float)
# What is worked out at once leaves little to copy, and nothing to hide.
hides = [t for t in names if hide and TASKS[t].hides and (t in spoken or not TASKS[t].working)]
weights = {key: config[key] for key in ('w_frames', 'w_symbols', 'w_so_far', 'w_halt')}
shares_of_one = 'hide', 'replay', 'difficulty', 'curriculum', 'mixed_symbols'
not_negative = 'warmup_iters', 'learning_rate', 'min_lr', 'weight_decay', 'grad_clip', *weights
one_or_more = ('batch_size', 'gradient_accumulation_steps', 'eval_interval', 'log_interval',
               'eval_samples', 'think', 'max_iters')
bounds(config, **dict.fromkeys(shares_of_one, (0, 1)), **dict.fromkeys(not_negative, 0),
       **dict.fromkeys(one_or_more, 1), test_samples=-1, seed=SEEDS)
choices(config, sound=('clean', 'real'), dtype=('auto', 'float32', 'bfloat16'),
        ssd=('auto', 'torch', 'mamba_ssm'))
of_model = {f.name: config[f.name] for f in fields(JMambaConfig) if f.name in config}
try:
    c = JMambaConfig(**of_model, n_symbols=len(SYMBOLS), n_so_far=n_labels())
    for name in names:  # a task that contradicts itself would train happily
        check(name)
except ValueError as e:
    fail(e)
for is_wrong, why in (
    (shares and not sum(shares.values()), "mix must leave a share to one of the tasks"),
    (batch_size % world, f"batch_size must be a multiple of the {world} processes"),
    (hides and batch_size // world % 2, "hide needs an even number of examples in each process"),
    (hide and not c.pointer, "hide needs the pointer: what is hidden can only be pointed at"),
    (prepare.BLOCK % c.token, f"patch must divide {c.patch * prepare.BLOCK // c.token} frames"),
    (not w_frames + w_symbols, "with every loss turned off nothing is learned"),
):
    if is_wrong:
        fail(why)
if not out_dir:
    # A run is called by its config file, or else its tasks, and by its seed.
    files = [a for a in sys.argv[1:] if not a.startswith('-')] or ['_'.join(names)]
    path = os.path.splitext(os.path.abspath(files[-1]))[0]
    name = os.path.relpath(path, os.path.join(HERE, 'config'))
    name = os.path.basename(path) if name.startswith(os.pardir) else name
    out_dir = os.path.join('out', name if seed == 1337 else f'{name}_s{seed}')

# --- the machine ---
device = system.pick_device(device)
kind = torch.device(device).type
processes.start(kind)
dtype = system.pick_dtype(dtype, kind)
amp = torch.autocast(kind, getattr(torch, dtype), dtype != 'float32')
torch.manual_seed(seed)
torch.backends.cuda.matmul.allow_tf32 = True
generator = torch.Generator(device).manual_seed(seed)  # of the examples
task_random = random.Random(seed)                      # of which task is next

# --- the model, from scratch or from a checkpoint ---
RESULTS = r'(best|ckpt)\.pt|(scores|sounds|lengths|summary)(_.+)?\.json'
try:
    if init_from == 'scratch':
        model = MiniJMamba(c).to(device)
    else:
        folder = out_dir if init_from == 'resume' else init_from
        model, checkpoint = load_checkpoint(out_dir, device, init_from)
        was = {**checkpoint['config'], **asdict(model.config)}
        now = {**config, **asdict(c)}
        # What went before must have been of the same kind; new symbols and a new head may be added.
        fixed = asdict(c).keys() - {'n_symbols', 'n_so_far', 'halting'}
        if init_from == 'resume':
            fixed = {'tasks', 'aloud', 'curriculum', 'seed', 'muon', *asdict(c)}
        for key in fixed:
            if was[key] != now[key]:
                fail(f"{folder} was trained with {key}={was[key]}; to go on, leave it so")
        model = extended(model, c)
        if init_from != 'resume' and os.path.realpath(folder) == os.path.realpath(out_dir):
            fail(f"{folder} would be overwritten: give another --out_dir, or --init_from=resume")
    fast.use(model, ssd, compile)
    learned = [(n, p) for n, p in model.named_parameters() if n.startswith(learns)]
    learned or fail(f"learns names no part of the model: {learns}")
    if not rank:
        system.claim(out_dir)
    if not rank and init_from != 'resume':
        # What an earlier training left must not pass for that of this one.
        found = sorted(name for name in os.listdir(out_dir) if re.fullmatch(RESULTS, name))
        if found and not overwrite:
            fail(f"{out_dir} holds an earlier run ({', '.join(found)}): go on with it by "
                 "--init_from=resume, replace it by --overwrite=true, or give another --out_dir")
        system.clear(out_dir, RESULTS)
    log_path = os.devnull if rank else os.path.join(out_dir, 'log.jsonl')
    log_file = open(log_path, 'a' if init_from == 'resume' else 'w', buffering=1)
except ValueError as e:
    fail(e)
except OSError as e:
    fail(f"cannot write to {out_dir}: {e.strerror}")
for name, p in model.named_parameters():
    p.requires_grad_(name.startswith(learns))
print(f"{sum(p.numel() for _, p in learned):,} parameters on {device}, tasks: {tasks}")

# --- the optimizer, and where the run stands ---
# A CUDA graph reads its numbers from tensors: learning rate, difficulty, counts of bad updates.
cuda_graphs = compile and kind == 'cuda'
lr = torch.tensor(learning_rate, device=device) if cuda_graphs else learning_rate
optimizer = make_optimizer(learned, lr, weight_decay, muon, cuda_graphs)
level = torch.full((), difficulty, device=device)
skipped, in_a_row = torch.zeros(2, dtype=torch.int64, device=device)  # updates that are no numbers
# wrong is the share of the validation questions; to_validate says that a stop came in between.
wrong = dict.fromkeys(names, 1.0)
stands = dict(iter_num=0, best=-1.0, seconds=0.0, wrong=wrong, to_validate=False,
              updates=dict.fromkeys(names, 0), levels=dict.fromkeys(names, difficulty))
if init_from == 'resume':
    if not {'optimizer', 'generator', 'task_random', *stands} <= checkpoint.keys():
        fail(f"{out_dir}/ckpt.pt cannot be resumed: it holds weights only")
    saved = checkpoint['optimizer']
    # The settings of this run count, not those of the one before.
    for group, now in zip(saved['param_groups'], optimizer.param_groups, strict=True):
        group.update({k: now[k] for k in now if k != 'params'})
    optimizer.load_state_dict(saved)
    state = checkpoint['generator'].cpu()
    if len(state) == len(generator.get_state()):
        generator.set_state(state)
    else:
        print("random numbers of another kind of device: examples are drawn anew")
        generator.manual_seed(seed + checkpoint['iter_num'])
    task_random.setstate((3, tuple(checkpoint['task_random']), None))
    stands = {key: checkpoint[key] for key in stands}


def save(name):
    """Write a checkpoint, whole or not at all"""
    if rank:
        return
    tones = {s: prepare.LOWEST + prepare.SPACING * i for i, s in enumerate(SYMBOLS)}
    contents = {'model_args': asdict(model.config), 'model': model.state_dict(), 'config': config,
                'tones': tones, 'provenance': system.provenance(), **stands}
    # What a resumed run needs to go on as if it had not stopped
    contents |= {'optimizer': optimizer.state_dict(), 'generator': generator.get_state(),
                 'task_random': list(task_random.getstate()[1])}
    path = os.path.join(out_dir, name)
    try:
        system.write_whole(path, partial(torch.save, contents))
    except OSError as e:
        bar.close()
        fail(f"cannot write {path} ({e.strerror}); what was saved before is whole", 1)


# --- examples, drawn for several updates of a task at once: see fast/lots.py ---
block = prepare.BLOCK * (4 if compile else 1)  # GPUs like larger ones
synthesis = fast.synthesis(device) if compile else prepare.Synthesis()
part, n_rows = processes.part_of(batch_size), batch_size // world
n_own = 2 * round(replay * n_rows / 2)  # conversations


def draw(task, n, generator):
    """n examples of a task"""
    wishes = taken(task, level=level, pairs=task in hides, mixed_symbols=mixed_symbols)
    return prepare.draw_examples(task, 'train', n, generator, device, shuffled, sound, block,
                                 aloud=task in spoken, pauses=pauses_of[task], **wishes)


lots = fast.Lots(draw, spoken, n_rows, n_own, gradient_accumulation_steps, block, device)


def level_now():
    """The difficulty, as far as it has risen"""
    return difficulty * min(1, iter_num / (curriculum * max_iters)) if curriculum else difficulty


def next_window(task):
    """Choose what the next update hears -> how many samples its window has"""
    # A task's examples do not depend on when its updates come.
    n = stands['updates'][task]
    stands['updates'][task] += 1
    if not n % fast.LOT:
        stands['levels'][task] = level_now()
    level.fill_(stands['levels'][task])
    return lots.next(task, n, seed)


def examples(task, n_samples):
    """An Example for each forward of an update"""
    teaches = TASKS[task].so_far and (TASKS[task].so_far_aloud or task not in spoken)
    for i in range(gradient_accumulation_steps):
        drawn, so_far, is_last, talk, own = lots.batch(task, i, n_samples)
        # The random numbers of noise are those of all processes, so that several draw as one does.
        white = torch.randn(batch_size, n_samples, generator=generator, device=device)[part]
        batch = prepare.render(task, drawn, n_samples, white, generator, synthesis, *own)
        # What is repeated is not to be learned by heart.
        may_generate = ~batch.repeats if c.pointer else None
        hiding = None
        if task in hides:
            hiding = lessons.hide_from(batch, hide, batch_size, part, c, generator, len(talk))
        so_far = so_far if teaches else None
        yield lessons.Example(batch, may_generate, hiding, so_far, is_last, talk)


# --- one update ---
measure, distance = lessons.losses, fast.distance(device)
if compile:
    measure = fast.compiled(measure)


def step(task, n_samples):
    """One update: forward, backward, optimizer -> the numbers to log"""
    for example in examples(task, n_samples):
        batch, talk = example.batch, example.talk
        with amp:
            answer = model(batch.question, batch.lengths, example.may_generate, example.hiding)
            parts = measure(model, answer, example, weights, distance)
            loss = sum(weights[k] * v for k, v in parts.items())
        (loss / gradient_accumulation_steps).backward()
        if len(talk):
            lots.replied(task, talk, *lessons.reply(model, answer.frames[-len(talk):], batch))
    numbers = {'loss': loss.detach(), **{k[2:]: v.detach() for k, v in parts.items()}}
    processes.average([p.grad for p in model.parameters() if p.grad is not None])
    processes.average(list(numbers.values()))
    norm = clip_grad_norm_(model.parameters(), grad_clip or math.inf)
    # An update that is no number leaves all as it is: the optimizer is told by found_inf.
    finite = torch.isfinite(norm + numbers['loss'])
    in_a_row.copy_(torch.where(finite, 0, in_a_row + 1))
    skipped.add_(~finite)
    optimizer.found_inf = 1 - finite.float()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {**numbers, 'norm': norm, 'skipped': skipped, 'in a row': in_a_row}


graphs, update = {}, step
if cuda_graphs:
    lots.refill = fast.in_graphs(lots.refill, graphs, lots.generator)
    update = fast.in_graphs(step, graphs, generator)


def get_lr(it):
    # 1. Linear warm-up
    warmup = min(1, (it + 1) / (warmup_iters + 1))
    # 2. Cosine down to min_lr
    progress = max(0, it - warmup_iters) / max(1, max_iters - warmup_iters)
    above = 0.5 * (learning_rate - min_lr) * (1 + math.cos(math.pi * progress))
    return (min_lr + above) * warmup


def validate_and_save():
    """Validate, and save the checkpoint -> False if an end was asked for before it was done"""
    found = None
    if not rank:
        with system.at_once():
            found = validate(model, names, spoken, eval_samples, seed + 1, device, think, sound,
                             difficulty)
    found = processes.told_by_first(found)
    if not found:
        return False
    right = {t: (found['val'][t] + found['val_ood'][t]) / 2 for t in names}
    score = sum(right.values()) / len(right)
    is_better = score >= stands['best']
    stands.update(wrong={t: 1 - x for t, x in right.items()}, best=max(stands['best'], score),
                  seconds=time.time() - began, to_validate=False)
    log({'level': level_now(), 'odds': odds, **found})
    shown = ', '.join(f"{t} {found['val'][t]:.4f} {found['val_ood'][t]:.4f}" for t in names)
    tell(f"validation exact match, in and out of distribution: {shown}")
    if is_better:  # first: a run that is killed in between does this evaluation again
        save('best.pt')
    save('ckpt.pt')
    return True


def log(row):
    at = {'iter': stands['iter_num'], 'seconds': round(time.time() - began, 2)}
    print(json.dumps({**at, **row}), file=log_file)


def tell(text):
    system.say(f"iter {stands['iter_num']}/{max_iters} | {text} | {time.time() - began:.1f} s", bar)


# --- the loop ---
if costs:
    part_named('lab.costs:show')(globals())
    sys.exit()
stop = system.catch_signals()
iter_num = stands['iter_num']
bar = tqdm(total=max_iters, initial=iter_num, unit='it', disable=True if rank else None)
began, bad, odds = time.time() - stands['seconds'], 0, shares
ended = stands['to_validate'] and not validate_and_save()  # what a stop left undone
while iter_num < max_iters and not ended:
    lr = get_lr(iter_num)
    for group in optimizer.param_groups:
        group['lr'] = group['lr'].fill_(lr) if cuda_graphs else lr

    # --- step ---
    odds = shares or {t: max(stands['wrong'][t], 0.1) for t in names}  # none is forgotten
    task = task_random.choices(names, [odds[t] for t in names])[0]
    numbers = update(task, next_window(task))
    iter_num = stands['iter_num'] = iter_num + 1
    bar.update()
    log_now = iter_num % log_interval == 0
    evaluate_now = iter_num % eval_interval == 0 or iter_num >= max_iters
    # Several processes stop at the same iteration.
    ended = bool(stop) and world == 1
    if log_now or evaluate_now:
        ended = processes.in_any(bool(stop), device)

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
        log({'task': task, 'lr': lr, **values})
        shown = ' '.join(f"{k} {v:.4f}" for k, v in values.items() if k != 'skipped' or v)
        tell(f"{task} | {shown} | lr {lr:.1e}")

    # --- evaluate; weights that have just led to no numbers are not worth keeping ---
    if evaluate_now and not bad:
        stands['to_validate'] = True
        ended = ended or not validate_and_save()

# --- the end ---
bar.close()
stands['seconds'] = time.time() - began
if ended:
    save('ckpt.pt')
graphs.clear()
numbers = None  # A graph and its numbers hold gigabytes, and the connection between processes.
torch.cuda.empty_cache()
processes.end()
if ended:
    again = [a for a in sys.argv if not a.startswith(('--init_from=', '--overwrite='))]
    runner = 'python' if world == 1 else f'torchrun --standalone --nproc_per_node={world}'
    command = shlex.join([*again, '--init_from=resume'])
    system.say(f"stopped at iteration {iter_num}, saved in {out_dir}/ckpt.pt; go on with: {runner} "
               f"{command}", bar)
    sys.exit((stop or [128 + signal.SIGTERM])[0])
n_examples = iter_num * batch_size * gradient_accumulation_steps
memory = f", {torch.cuda.max_memory_reserved() / 2 ** 30:.1f} GiB" if kind == 'cuda' else ''
system.say(f"trained {iter_num} iterations, {n_examples:,} examples, in {stands['seconds']:.1f} s"
           f"{memory}", bar)

# --- what it learned: the two commands a user would run ---
if test_samples < 0:
    test_samples = 200 if kind == 'cpu' else 1000
if test_samples and not rank:
    flags = f'--out_dir={out_dir}', f'--device={device}', f'--think={think}'
    system.run_program('score.py', *flags, f'--num_samples={test_samples}')
    system.run_program('sample.py', *flags, '--num_samples=4')

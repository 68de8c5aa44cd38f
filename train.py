"""
Train Mini-JMamba to answer in tones what it is asked in tones.

$ python train.py config/mirror.py                       # half a minute on two CPU cores, then its test results and WAVs
$ python train.py config/mirror.py --batch_size=32       # any setting below can be given
$ python train.py config/mirror.py --init_from=resume    # go on from out_dir/ckpt.pt
$ torchrun --standalone --nproc_per_node=2 train.py config/multitask.py    # two GPUs, each with half of every batch

Examples are made as it goes, on the device that trains. out_dir gets ckpt.pt (the last), best.pt (the best on the
validation splits), log.jsonl, and at the end scores.json and samples/.
"""
import json
import math
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from configurator import SEEDS, bounds, configure, fail, provenance
from model import HOP, JMambaConfig, MiniJMamba, capture, compile_parts, kernel_missing, load_checkpoint, pick_device, save_checkpoint
from prepare import BLOCK, LOWEST, REST, SAMPLE_RATE, SPACING, SYMBOLS, TASKS, make_batch, slot_at, so_far
from score import evaluate

# --- settings: config files and --key=value override them ---
out_dir = ''             # where results go; '' is out/ and the name of the last config file, and _s and the seed if it is not 1337
eval_interval = 50       # iterations
log_interval = 10
eval_samples = 100       # validation questions of each task at each evaluation, in distribution and out of it
test_samples = 1000      # questions of each test split at the end; 0 skips the tests
init_from = 'scratch'    # or resume
# data
tasks = 'mirror'         # of mirror, bracket, mod, with a comma between them
mix = 'error'            # tasks are drawn by what is still wrong in validation; or fixed shares, such as 1,1,2
mix_floor = 0.1          # error that a task counts as having at least, so that none is forgotten
curriculum = 'none'      # of each task: adaptive (harder once validation passes `promote`), linear (for the first half), none
promote = 0.9            # exact match, of validation questions of the difficulty reached
rests = '0'              # silent slots strewn into a training question, at most: for all tasks, or for each, such as 0,24,4
foreign = 0.0            # mirror: share of the symbols of a training question that are drawn from those of all tasks, not from the letters
aloud = ''               # those of the tasks, mod and bracket, in which each line of working is the answer to the last; others at once
blind = 0.0              # mirror, and mod aloud: share of the examples in which the decoder finds another question (in mod one with the same divisors)
                         # in the place of its own, by the clock from somewhere behind the last change on and under noise, by content as a whole;
                         # it can only point at its own. What is repeated must not depend on what it is, nor on what usually follows, and what is
                         # worked out must not come from where all of the number is known
think = 16               # aloud: passes at most when it is asked
batch_size = 16          # examples made for each forward and backward, on all GPUs together
gradient_accumulation_steps = 1  # of those for each update
# model: see JMambaConfig
d_model = 128            # width of a token
n_encoder = 6            # Mamba-2 layers that hear the question
n_decoder = 4            # Mamba-2 layers that play the answer
d_state = 64             # of a Mamba-2 head: it remembers d_state * head_dim numbers
head_dim = 32            # width of a Mamba-2 head
n_head = 4               # attention heads
counting = 0.5           # share of the Mamba-2 heads that never forget
patch = 5                # frames of 10 ms in a token
freeze = True            # the Mamba-2 states stand still while nothing sounds
mamba = True             # false: self-attention in the place of every Mamba-2 layer
pointer = True           # false: every frame is generated
shuffled = False         # a control: every question gets another's answer
# losses: their weights; 0 turns one off
w_frames = 1.0           # L1 + L2 of the compressed frames
w_wave = 0.0             # L1 of the waveform, played with the target's phase
w_stft = 0.0             # multi-resolution STFT of the same (Yamamoto et al., 2020)
w_symbols = 0.1          # cross-entropy of each token's symbol; the alignment is known
w_so_far = 0.1           # bracket, and mod at once: cross-entropy of what the question comes to so far, from the encoder
# optimizer
learning_rate = 2e-3     # the highest, after the warm-up
max_iters = 300          # updates
warmup_iters = 20        # linear up to learning_rate
lr_decay_iters = 300     # cosine down to min_lr by then
min_lr = 2e-4            # the lowest, at the end
weight_decay = 0.1       # of matrices only
grad_clip = 1.0          # 0 turns it off
# system
device = 'auto'          # auto, cpu, cuda
dtype = 'auto'           # auto, float32, bfloat16
ssd = 'auto'             # the Mamba-2 scan: torch, mamba_ssm (its kernel, on an NVIDIA GPU), or auto: the fastest for the length
compile = False          # torch.compile, and on a GPU one CUDA graph for each task
seed = 1337              # of weights and examples
config = configure(globals())

# --- set-up ---
rank, world = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))  # torchrun sets them
try:
    if world > 1 and device in ('auto', 'cuda') and torch.cuda.is_available():
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    device = pick_device(device)
except ValueError as e:
    fail(e)
tasks_list = tasks.split(',')
for t in tasks_list:
    if t not in TASKS:
        fail(f"there is no task {t!r}; the tasks are {', '.join(TASKS)}")
aloud_list = aloud.split(',') if aloud else []
if not set(aloud_list) <= {'mod', 'bracket'} & set(tasks_list):
    fail(f"aloud names those of the tasks {tasks} that are worked out aloud, mod or bracket or both, not {aloud!r}")


def of_each(key, kind):
    """A setting that holds one number for all tasks, or one for each -> {task: number}"""
    try:
        numbers = [kind(x) for x in config[key].split(',')]
        numbers = dict(zip(tasks_list, numbers * len(tasks_list) if len(numbers) == 1 else numbers, strict=True))
        if all(0 <= x <= 10000 for x in numbers.values()):
            return numbers
    except ValueError:
        pass
    what = {int: "a whole number", float: "'error', or a number"}[kind]
    fail(f"{key} takes {what} from 0 to 10000 for all tasks or one for each, such as {','.join('1' for _ in tasks_list)}, not {config[key]!r}")


shares, rests_of = None if mix == 'error' else of_each('mix', float), of_each('rests', int)
if shares and not sum(shares.values()):
    fail("mix must leave a share to one of the tasks")
if curriculum not in ('adaptive', 'linear', 'none'):
    fail(f"curriculum is adaptive, linear or none, not {curriculum!r}")
if batch_size % world:
    fail(f"batch_size = {batch_size} must be a multiple of the {world} processes")
if init_from not in ('scratch', 'resume'):
    fail(f"init_from is 'scratch' or 'resume', not {init_from!r}")
bounds(config, batch_size=1, gradient_accumulation_steps=1, eval_interval=1, log_interval=1, eval_samples=1, think=1, max_iters=1,
       warmup_iters=0, test_samples=0, learning_rate=0, min_lr=0, weight_decay=0, grad_clip=0,
       patch=1, seed=SEEDS, mix_floor=1e-3, promote=0, w_frames=0, w_wave=0, w_stft=0, w_symbols=0, w_so_far=0, blind=(0, 1), foreign=(0, 1))
if BLOCK % (HOP * patch):
    fail(f"patch = {patch} must divide {BLOCK // HOP}, the frames in a block of sound")
hiding = [t for t in tasks_list if blind and (t == 'mirror' or t == 'mod' and t in aloud_list)]  # the tasks that blind is for
if hiding and batch_size // world % 2:
    fail(f"blind needs an even number of examples for each process, as neighbours are pairs: batch_size = {batch_size} over {world}")
if blind and not pointer:
    fail("blind needs the pointer: what the decoder cannot look at, it can only point at")
if not w_frames + w_wave + w_stft + w_symbols:
    fail("with every loss turned off there is nothing to learn")
if not out_dir:
    named = [os.path.splitext(os.path.basename(a))[0] for a in sys.argv[1:] if not a.startswith('-')]
    out_dir = os.path.join('out', (named or [tasks.replace(',', '_')])[-1] + (f'_s{seed}' if seed != 1337 else ''))
on_gpu = device.startswith('cuda')
if world > 1:
    dist.init_process_group('nccl' if on_gpu else 'gloo')
if rank:  # only the first process talks
    sys.stdout = open(os.devnull, 'w')
if dtype == 'auto':
    dtype = 'bfloat16' if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else 'float32'
    why = "the GPU has it" if dtype == 'bfloat16' else f"the {device} device gains nothing from less"
    print(f"dtype {dtype}: {why}")
elif dtype not in ('float32', 'bfloat16'):
    fail(f"dtype is auto, float32 or bfloat16, not {dtype!r}")
if ssd == 'mamba_ssm' and kernel_missing():
    fail(f"ssd=mamba_ssm, but {kernel_missing()}; use ssd=auto")
torch.manual_seed(seed)
torch.backends.cuda.matmul.allow_tf32 = True
amp = nullcontext() if dtype == 'float32' else torch.autocast('cuda' if on_gpu else device, getattr(torch, dtype))
generator = torch.Generator(device).manual_seed(seed)  # of the examples
turns = random.Random(seed)                            # of the tasks
try:
    os.makedirs(out_dir, exist_ok=True)
    if init_from == 'resume':
        model, checkpoint = load_checkpoint(out_dir, device, 'resume')
        model.train()
        model.config.ssd = ssd
        for k in ('tasks', 'aloud', 'curriculum', 'seed', *(k for k in config if k in checkpoint['model_args'] and k != 'ssd')):
            was = {**checkpoint['model_args'], **checkpoint['config']}[k]  # a setting may be younger than the checkpoint
            if config[k] != was:
                fail(f"{out_dir} was trained with {k}={was}; to resume, leave it so")
    else:
        model = MiniJMamba(JMambaConfig(**{k: v for k, v in config.items() if k in JMambaConfig.__dataclass_fields__})).to(device)
        for name in ('best.pt', 'ckpt.pt', 'scores.json'):  # an earlier run's must not pass for this one's
            if not rank and os.path.exists(os.path.join(out_dir, name)):
                os.remove(os.path.join(out_dir, name))
    log_file = open(os.devnull if rank else os.path.join(out_dir, 'log.jsonl'), 'a' if init_from == 'resume' else 'w')
except ValueError as e:
    fail(e)
except OSError as e:
    fail(f"cannot write to {out_dir}: {e.strerror}")
matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and 'conv' not in n]
others = [p for n, p in model.named_parameters() if p.dim() < 2 or 'conv' in n]
cuda_graphs = compile and on_gpu
optimizer = torch.optim.AdamW([{'params': matrices, 'weight_decay': weight_decay}, {'params': others, 'weight_decay': 0.0}],
                              lr=torch.tensor(learning_rate, device=device) if cuda_graphs else learning_rate,
                              betas=(0.9, 0.99), fused=True, capturable=cuda_graphs)
skipped, in_a_row = torch.zeros(2, dtype=torch.int64, device=device)  # updates whose loss or gradient was not a number
iter_num, best, seconds = 0, [-1.0, -1.0], 0.0
wrong = {t: 1.0 for t in tasks_list}  # share of the validation questions
levels = {t: torch.tensor(float(curriculum == 'none'), device=device) for t in tasks_list}  # how far each task's difficulty has risen
if init_from == 'resume':
    try:
        for group, now in zip(checkpoint['optimizer']['param_groups'], optimizer.state_dict()['param_groups']):
            group.update({k: now[k] for k in now if k != 'params'})  # the settings of this run
        optimizer.load_state_dict(checkpoint['optimizer'])
        generator.set_state(checkpoint['generator'].cpu())
        turns.setstate((3, tuple(checkpoint['turns']), None))
        iter_num, best, seconds, wrong = (checkpoint[k] for k in ('iter_num', 'best', 'seconds', 'wrong'))
        for t in tasks_list:
            levels[t].fill_(checkpoint['levels'][t])
    except Exception:  # of any kind, if the file is damaged
        fail(f"{out_dir}/ckpt.pt cannot be resumed: it holds weights only, or is damaged")
print(f"{sum(p.numel() for p in model.parameters()):,} parameters on {device}, tasks: {tasks}")


def save(name):
    if rank:
        return
    try:
        save_checkpoint(os.path.join(out_dir, name), model, optimizer=optimizer.state_dict(),
                        generator=generator.get_state(), turns=list(turns.getstate()[1]), iter_num=iter_num, best=best,
                        seconds=seconds, wrong=wrong, levels={t: float(x) for t, x in levels.items()}, config=config, provenance=provenance(),
                        tones={c: LOWEST + SPACING * i for i, c in enumerate(SYMBOLS)})
    except OSError as e:
        bar.close()
        fail(f"cannot write {os.path.join(out_dir, name)} ({e.strerror}); what was saved before is whole", 1)


def multi_resolution_stft(x, y):
    """Spectral convergence and log-magnitude distance of waveforms (B, S) at three resolutions"""
    total = 0.0
    for n in (256, 512, 1024):
        w = torch.hann_window(n, device=x.device)
        p, q = ((torch.stft(t, n, n // 4, window=w, return_complex=True).abs().square() + 1e-7).sqrt() for t in (x, y))
        total += (q - p).norm() / q.norm() + (q.log() - p.log()).abs().mean()
    return total / 3


def losses(frames, logits, prefix, batch, seen, task):
    """What the model answered to a batch -> its losses, unweighted, by the names of their weights; those of weight 0 are not computed"""
    s, token = model.spectrum, model.config.token
    valid = torch.arange(logits.shape[1], device=device) * token < batch.lengths[:, None]  # (B, T)
    mean = lambda x, over=valid: ((x * over).sum(1) / over.sum(1).clamp(min=1)).mean()  # every example counts alike
    out = {}
    if w_frames:
        off = frames.float().unflatten(1, (-1, model.config.patch)) - model.hear(batch.answer).unflatten(2, (model.config.patch, -1))
        out['w_frames'] = mean((off.abs() + off.square()).mean((2, 3)))
    with torch.autocast('cuda' if on_gpu else 'cpu', enabled=False):
        if w_wave or w_stft:
            played = s.istft(s.with_phase(s.exp(frames.float()), s.stft(batch.answer)))
            if w_wave:
                out['w_wave'] = mean((played - batch.answer).abs().unflatten(1, (-1, token)).mean(2))
            if w_stft:
                out['w_stft'] = multi_resolution_stft(played, batch.answer)
        seconds_of, middle = token / SAMPLE_RATE, model.config.middle / SAMPLE_RATE
        if w_symbols:  # what sounds in the middle of each token's frames
            slot = slot_at(batch.rhythm.start, valid.shape[1], seconds_of, middle).clamp(min=0).long()
            t = torch.arange(valid.shape[1], device=device) * seconds_of + middle - batch.rhythm.start.gather(1, slot)
            label = batch.wanted.gather(1, slot)
            label = torch.where((t >= 0) & (t < batch.rhythm.length.gather(1, slot)) & (label != REST), label, len(SYMBOLS))
            known = valid if seen is None else valid & (torch.arange(valid.shape[1], device=device) < seen[:, None] // token)
            out['w_symbols'] = mean(F.cross_entropy(logits.float().transpose(1, 2), label, reduction='none'), known)
        if w_so_far and (task == 'bracket' or task == 'mod' and task not in aloud_list):  # after the last symbol that has been heard for 50 ms
            slot = slot_at(batch.rhythm.start, valid.shape[1], seconds_of, seconds_of - 0.05)
            label = torch.where(slot < 0, -1, so_far(task, batch.asked).gather(1, slot.clamp(min=0).long()))
            out['w_so_far'] = mean(F.cross_entropy(prefix.float().transpose(1, 2), label.clamp(min=0), reduction='none'), valid & (label >= 0))
    return out


weights = {k: config[k] for k in config if k.startswith('w_')}
mine = slice(rank * batch_size // world, (rank + 1) * batch_size // world)  # of every batch, drawn alike by all processes


def examples(task):
    """The examples of an update -> for each forward and backward its batch and what else the model is told of it: see MiniJMamba.forward"""
    spoken = task in aloud_list
    own = {'mirror': {'foreign': foreign}, 'bracket': {'aloud': spoken}, 'mod': {'aloud': spoken, 'pairs': task in hiding}}[task]
    for _ in range(gradient_accumulation_steps):
        batch = make_batch(task, 'train', batch_size, generator, device, mine, rests=rests_of[task], shuffled=shuffled, level=levels[task], **own)
        new = seen = noise = None
        if pointer:  # what is repeated is not to be learned by heart: a frame belongs to the last slot that has begun by its end
            hop = HOP / SAMPLE_RATE
            slot = slot_at(batch.rhythm.start, batch.question.shape[1] // HOP, hop, hop).clamp(min=0)
            new = (batch.asked != batch.wanted).gather(1, slot)
        if task in hiding:
            hidden, spared, strength = torch.rand(3, batch_size, generator=generator, device=device)[:, mine]
            tokens = batch.question.shape[1] // model.config.token
            noise = torch.randn(batch_size, (tokens + 1) // 2, d_model, generator=generator, device=device)[mine]  # each for two tokens, of 50 ms a tone's length
            noise = (2 * strength[:, None, None] * noise).repeat_interleave(2, 1)[:, :tokens]
            seen = batch.changed + (spared.square() * (batch.lengths - batch.changed)).long()  # at random, or it would tell where the change ends
            seen = torch.where(hidden < blind, seen, batch.question.shape[1])
        yield batch, new, seen, noise


def step(task, made):
    """One update from examples(task): forward, backward, optimizer -> the losses and the norm of the gradient"""
    for batch, new, seen, noise in made:
        with amp:
            parts = losses(*model(batch.question, batch.lengths, new, seen, noise), batch, seen, task)
            loss = sum(weights[k] * v for k, v in parts.items())
        (loss / gradient_accumulation_steps).backward()
    if world > 1:  # the mean over the processes, in one message: less than DistributedDataParallel does, and a CUDA graph can hold it
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        torch._foreach_copy_(grads, [f.view_as(g) for f, g in zip((flat / world).split([g.numel() for g in grads]), grads)])
        report = torch.stack([loss.detach(), *(v.detach() for v in parts.values())])
        dist.all_reduce(report)
        loss, *values = (report / world).unbind()
        parts = dict(zip(parts, values))
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
    finite = torch.isfinite(norm + loss.detach())
    in_a_row.copy_(torch.where(finite, 0, in_a_row + 1))
    skipped.add_(~finite)
    optimizer.found_inf = 1 - finite.float()  # the fused optimizer leaves everything as it is where this is 1
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {'loss': loss.detach(), **{k[2:]: v.detach() for k, v in parts.items()}, 'norm': norm, 'skipped': skipped, 'in a row': in_a_row}


if compile:
    import prepare
    compile_parts(model)
    prepare.play = torch.compile(prepare.play, dynamic=False)
    losses = torch.compile(losses, dynamic=False)
graphs = {}


def capture_step(task):
    """step() as a CUDA graph, in which the examples of the next update are made beside this one: both are many small kernels"""
    made, side = list(examples(task)), torch.cuda.Stream()

    def update():
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            following = list(examples(task))
        numbers = step(task, made)
        torch.cuda.current_stream().wait_stream(side)
        for now, then in zip(tree_leaves(made), tree_leaves(following)):
            if now is not None:
                now.copy_(then)
        return numbers
    return *capture(update, generator), made  # which the graph reads and writes: it must live as long


stop = []  # the signals that have asked for an end


def on_signal(number, frame):
    stop.append(number)
    signal.signal(number, signal.SIG_DFL)  # the second time is not asked twice
    os.write(1, b"\nstopping after this iteration; once more to stop at once\n")  # print() must not interrupt a print()


for sig in (signal.SIGINT, signal.SIGTERM):
    signal.signal(sig, on_signal)

# --- the loop ---
bar = tqdm(total=max_iters, initial=iter_num, unit='it', disable=True if rank else None)
clock, bad, ended = time.time(), 0, False
while iter_num < max_iters and not ended:
    # cosine with warm-up
    lr = min_lr if iter_num > lr_decay_iters else min_lr + 0.5 * (learning_rate - min_lr) * (
        1 + math.cos(math.pi * max(0, iter_num - warmup_iters) / max(1, lr_decay_iters - warmup_iters)))
    lr *= min(1, (iter_num + 1) / (warmup_iters + 1))
    for group in optimizer.param_groups:
        group['lr'].fill_(lr) if cuda_graphs else group.update(lr=lr)

    # step
    before = iter_num
    odds = shares or {t: max(wrong[t], mix_floor) for t in tasks_list}
    task = turns.choices(tasks_list, [odds[t] for t in tasks_list])[0]
    if curriculum == 'linear':
        for x in levels.values():
            x.fill_(min(1, 2 * iter_num / max_iters))
    if cuda_graphs:
        if task not in graphs:
            graphs[task] = capture_step(task)
            iter_num += 3  # its warm-up steps count
        graphs[task][0].replay()
        numbers = graphs[task][1]
    else:
        numbers = step(task, examples(task))
    iter_num += 1
    done = iter_num - before
    bar.update(done)

    # log
    ended = bool(stop)
    log_now, evaluate_now = iter_num % log_interval < done, iter_num % eval_interval < done or iter_num >= max_iters
    if world > 1:  # all stop at the same iteration, at a log line
        ended = False
        if log_now or evaluate_now:
            any_stop = torch.tensor(len(stop), device=device)
            dist.all_reduce(any_stop)
            ended = bool(any_stop)
    if log_now or evaluate_now:
        values = {k: float(v) for k, v in numbers.items()}  # waits for the GPU
        bad = values.pop('in a row')
        if bad >= 5:  # nothing bad has reached the weights, but they lead nowhere
            graphs.clear()
            bar.close()
            fail(f"{int(skipped)} updates were no numbers and were skipped, the last 5 or more in a row; "
                 "try a lower learning_rate or dtype=float32", 1)
    if log_now:
        now = seconds + time.time() - clock
        log_file.write(json.dumps({'iter': iter_num, 'seconds': round(now, 2), 'task': task, 'lr': lr, **values}) + '\n')
        log_file.flush()
        bar.write(f"iter {iter_num}/{max_iters} | {task} | " + ' '.join(f"{k} {v:.4f}" for k, v in values.items() if k != 'skipped' or v)
                  + f" | lr {lr:.1e} | {now:.1f} s")

    # evaluate: exact match, heard by the scorer from the answers' waveforms
    if evaluate_now and not bad:  # weights that have just led to no numbers are not worth keeping
        model.eval()
        torch.backends.cuda.matmul.allow_tf32 = False  # as it will be heard by score.py: long counts need the digits
        with torch.compiler.set_stance('force_eager'):  # other shapes than in training: not worth compiling
            ask = lambda t, split, level: evaluate(model, t, split, eval_samples, seed + 1, device, think if t in aloud_list else 1,
                                                   level=level)['exact_match']
            found = [{t: (ask(t, 'val', float(levels[t])), ask(t, 'val_ood', 1.0)) for t in tasks_list} if not rank else None]
        torch.backends.cuda.matmul.allow_tf32 = True
        model.train()
        if world > 1:  # what follows from it must be the same everywhere
            dist.broadcast_object_list(found)
        exact = found[0]
        wrong = {t: 1 - (a + b) / 2 for t, (a, b) in exact.items()}
        score = [min(map(float, levels.values())), 1 - sum(wrong.values()) / len(wrong)]  # first of all the full difficulty
        seconds, clock = seconds + time.time() - clock, time.time()
        better = score >= best
        best = max(best, score)
        log_file.write(json.dumps({'iter': iter_num, 'seconds': round(seconds, 2), 'val': {t: a for t, (a, _) in exact.items()},
                                   'val_ood': {t: b for t, (_, b) in exact.items()}, 'level': {t: float(x) for t, x in levels.items()},
                                   'odds': odds}) + '\n')
        log_file.flush()
        bar.write(f"iter {iter_num}/{max_iters} | validation exact match, in and out of distribution: "
                  + ', '.join(f"{t} {a:.4f} {b:.4f}" + (f" at level {float(levels[t]):.2f}" if curriculum != 'none' else '')
                              for t, (a, b) in exact.items()) + f" | {seconds:.1f} s")
        if curriculum == 'adaptive':
            for t, (a, _) in exact.items():
                levels[t].add_(0.25 * (a >= promote)).clamp_(max=1)
        if better:  # first: a run that is killed in between does this evaluation again
            save('best.pt')
        save('ckpt.pt')
bar.close()
log_file.close()
if ended:
    seconds += time.time() - clock
    save('ckpt.pt')
graphs.clear()  # they hold gigabytes, which the tests may need, and the connection between the processes, which could not be closed
numbers = None
torch.cuda.empty_cache()
if world > 1:
    dist.destroy_process_group()
if ended:
    again = [a for a in sys.argv if a != '--init_from=resume'] + ['--init_from=resume']
    with_ = 'python' if world == 1 else f'torchrun --standalone --nproc_per_node={world}'
    print(f"stopped at iteration {iter_num}; go on with: {with_} {shlex.join(again)}")
    sys.exit(128 + (stop or [signal.SIGTERM])[0])
if bad:
    fail("the last updates were no numbers and were skipped; try a lower learning_rate or dtype=float32", 1)
print(f"trained {iter_num} iterations, {iter_num * batch_size * gradient_accumulation_steps:,} examples, in {seconds:.1f} s")

# --- what it learned: the two commands a user would run ---
for sig in (signal.SIGINT, signal.SIGTERM):
    signal.signal(sig, signal.SIG_DFL)
here = os.path.dirname(os.path.abspath(__file__))
for script, *flags in (['score.py', f'--num_samples={test_samples}'], ['sample.py', '--num_samples=4']) if test_samples and not rank else ():
    print(f"\n$ python {script} --out_dir={out_dir} {' '.join(flags)}", flush=True)
    code = subprocess.run([sys.executable, os.path.join(here, script), f'--out_dir={out_dir}', f'--device={device}', *flags]).returncode
    if code:
        sys.exit(code)

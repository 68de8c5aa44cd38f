# Is it balanced? One-shot: V or X. Two minutes on an H100-class GPU, half of it compiling.
tasks = 'bracket'
batch_size = 512
learning_rate = 1e-3
min_lr = 1e-5
max_iters = 2500
lr_decay_iters = 2500
warmup_iters = 100
eval_interval = 250
eval_samples = 200
compile = True

# Remainders, worked out aloud: one line of working a pass. Minutes on an H100-class GPU.
out_dir = 'out/mod'
tasks = 'mod'
aloud = True
rests = 4
batch_size = 1024
d_model = 192
learning_rate = 1.5e-3
min_lr = 1e-5
max_iters = 8000
lr_decay_iters = 8000
warmup_iters = 200
eval_interval = 1000
eval_samples = 200
log_interval = 100
compile = True

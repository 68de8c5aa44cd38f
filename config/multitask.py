# One model for all three tasks; which one is asked, it hears. Minutes on an H100-class GPU.
tasks = 'mirror,bracket,mod'
aloud = 'mod,bracket'
rests = '0,24,4'
blind = 1.0
mix_floor = 0.02
batch_size = 256
learning_rate = 1.5e-3
min_lr = 1e-5
max_iters = 40000
lr_decay_iters = 40000
warmup_iters = 200
eval_interval = 2000
eval_samples = 100
log_interval = 100
compile = True

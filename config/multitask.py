# One model for all three tasks; which one is asked, it hears. Minutes on an H100-class GPU.
tasks = 'mirror,bracket,mod'
aloud = 'mod,bracket'
pauses = '0,24,7'
sound = 'real'
hide = 0.75
mixed_symbols = 0.4
mix = '3,3,10'
batch_size = 256
learning_rate = 1.5e-3
min_lr = 1e-5
max_iters = 90000
lr_decay_iters = 90000
warmup_iters = 200
eval_interval = 10000
eval_samples = 200
log_interval = 100
compile = True

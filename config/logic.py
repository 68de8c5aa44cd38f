# Circuits and parities, one gate or bit a pass. Minutes on an H100-class GPU.
tasks = 'logic'
aloud = 'logic'
pauses = '6'
hide = 0.5
batch_size = 256
learning_rate = 1.5e-3
min_lr = 1e-5
max_iters = 9000
warmup_iters = 200
eval_interval = 3000
eval_samples = 200
log_interval = 100
compile = True

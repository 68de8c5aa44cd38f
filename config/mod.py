# Remainders, worked out aloud: one line of working a pass. Minutes on an H100-class GPU.
tasks = 'mod'
aloud = 'mod'
pauses = '7'
hide = 0.75
replay = 0.25
muon = True
batch_size = 256
learning_rate = 3e-3
min_lr = 1e-5
max_iters = 30000
warmup_iters = 200
eval_interval = 10000
eval_samples = 200
log_interval = 100
compile = True

# A head that says that the answer is played, for weights that have none. Minutes on a laptop.
base('seven')
init_from = 'release'
halting = True
learns = 'halt'
replay = 0.0
muon = False
mix = '1,2,5,2,2,2,1'
batch_size = 32
learning_rate = 3e-2
min_lr = 1e-4
weight_decay = 0.0
warmup_iters = 20
max_iters = 1200
eval_interval = 1200
eval_samples = 50
log_interval = 20
compile = False

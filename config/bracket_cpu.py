# Is it balanced? Worked out aloud by a small model, in ten minutes on two CPU cores.
base('bracket')
d_model = 64
n_encoder = 3
n_decoder = 2
d_state = 32
pauses = '4'
replay = 0.0
muon = False
batch_size = 32
learning_rate = 4e-3
min_lr = 1e-4
max_iters = 2000
eval_interval = 500
eval_samples = 50
log_interval = 50
compile = False

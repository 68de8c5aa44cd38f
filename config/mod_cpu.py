# Remainders by B up to 9 of A up to 3 digits, worked out aloud by a small model, in ten minutes
# on two CPU cores.
base('mod')
d_model = 64
n_encoder = 3
n_decoder = 2
d_state = 32
difficulty = 0.4
hide = 0.0
replay = 0.0
muon = False
pauses = '2'
batch_size = 32
learning_rate = 4e-3
min_lr = 1e-4
max_iters = 3000
eval_interval = 1000
eval_samples = 50
log_interval = 50
compile = False

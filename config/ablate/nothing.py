# What the ablations are compared with: the multitask model on clean sound, on a fraction of its
# examples.
base('multitask')
sound = 'clean'
replay = 0.0
muon = False
learning_rate = 1.5e-3
max_iters = 6000
eval_interval = 2000
eval_samples = 100
test_samples = 200

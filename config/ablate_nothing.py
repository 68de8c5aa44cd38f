# What the ablations are compared with: the multitask model, on a tenth of its examples.
exec(open('config/multitask.py').read())
max_iters = 4000
lr_decay_iters = 4000
eval_interval = 1000
eval_samples = 100
test_samples = 200

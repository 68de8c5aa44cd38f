# What the ablations are compared with: the multitask model, on a nineteenth of its examples.
exec(open('config/multitask.py').read())
max_iters = 3000
lr_decay_iters = 3000
eval_interval = 1500
test_samples = 200

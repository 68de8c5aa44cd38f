# Mod alone, for as many updates as the multitask model spends on it.
exec(open('config/ablate_nothing.py').read())
tasks = 'mod'
aloud = 'mod'
rests = '8'
max_iters = 4300
lr_decay_iters = 4300

# Mod alone, for as many updates as the multitask model spends on it.
base('ablate/nothing')
tasks = 'mod'
aloud = 'mod'
pauses = '8'
max_iters = 4300
lr_decay_iters = 4300

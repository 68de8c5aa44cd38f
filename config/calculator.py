# All three tasks, but remainders with a calculator, which the model learns to call.
base('multitask')
tasks = 'mirror,bracket,calculator'
aloud = 'calculator,bracket'
sound = 'clean'
max_iters = 9000
lr_decay_iters = 9000

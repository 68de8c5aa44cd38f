# Play back what you heard, last letter first: a task of one file, tasks/reverse.py.
tasks = 'reverse'
max_iters = 3000
lr_decay_iters = 3000
eval_interval = 500
log_interval = 50

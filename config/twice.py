# Play back what you heard, twice. Minutes on two CPU cores.
tasks = 'twice'
points_at = 'same,again'
max_iters = 300
lr_decay_iters = 300

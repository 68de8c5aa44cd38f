# Play back what you heard, last letter first: a second place to point at. Two minutes on two CPU
# cores.
tasks = 'reverse'
points_at = 'same,end'
max_iters = 300
lr_decay_iters = 300

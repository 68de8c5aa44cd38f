# A control: mirror with weights as they were drawn. The pointer starts out looking straight across,
# so some of its answers are right.
base('mirror')
max_iters = 1
learning_rate = 0.0
min_lr = 0.0

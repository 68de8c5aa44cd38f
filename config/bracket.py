# Is it balanced? Worked out aloud: pairs that meet go, until all are gone or none meet. Minutes on
# an H100-class GPU; it takes many updates rather than many examples.
tasks = 'bracket'
aloud = 'bracket'
pauses = '24'
batch_size = 64
learning_rate = 1e-3
min_lr = 1e-5
max_iters = 12000
lr_decay_iters = 12000
warmup_iters = 100
eval_interval = 3000
eval_samples = 200
log_interval = 100
compile = True

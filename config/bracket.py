# Is it balanced? Worked out aloud: pairs that meet go, until all are gone or none meet. Minutes on
# an H100-class GPU; it takes many updates rather than many examples. What is left of a long row has
# wide gaps, and so have its questions.
tasks = 'bracket'
aloud = 'bracket'
pauses = '60'
replay = 0.25
muon = True
batch_size = 64
learning_rate = 2e-3
min_lr = 1e-5
max_iters = 19000
warmup_iters = 100
eval_interval = 3000
eval_samples = 200
log_interval = 100
compile = True

# The first three tasks, but remainders with a calculator, which the model learns to call.
base('multitask')
tasks = 'mirror,bracket,calculator'
aloud = 'calculator,bracket'
sound = 'clean'
replay = 0.0
muon = False
learning_rate = 1.5e-3
max_iters = 9000

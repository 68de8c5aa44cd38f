# A row of operations on a row of letters, one operation a pass. Minutes on an H100-class GPU.
base('logic')
tasks = 'dyna'
aloud = 'dyna'
pauses = '6'
replay = 0.25
muon = True
learning_rate = 2e-3
max_iters = 18400
eval_interval = 8000

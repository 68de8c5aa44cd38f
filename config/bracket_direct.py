# Is it balanced? At once: bracket.py without its working, for comparison.
base('bracket')
aloud = ''
pauses = '24'
muon = False
learning_rate = 1e-3
max_iters = 12000

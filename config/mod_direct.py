# Remainders at once, without working: for comparison with mod.py, on as many examples.
base('mod')
aloud = ''
pauses = '0'
hide = 0.0
muon = False
batch_size = 512
max_iters = 14000

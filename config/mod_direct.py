# Remainders at once, without working: for comparison with mod.py.
exec(open('config/mod.py').read())
aloud = ''
rests = '0'
blind = 0.0
batch_size = 512

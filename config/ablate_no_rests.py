# No silent slots in the questions of training.
exec(open('config/ablate_nothing.py').read())
rests = '0'

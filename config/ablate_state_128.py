# Twice the state.
exec(open('config/ablate_nothing.py').read())
d_state = 128

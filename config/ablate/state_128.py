# Twice the state.
base('ablate/nothing')
d_state = 128

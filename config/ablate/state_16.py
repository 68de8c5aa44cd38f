# A quarter of the state.
base('ablate/nothing')
d_state = 16

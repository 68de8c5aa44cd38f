# Twelve Mamba-2 layers and no attention, and so no pointer and nothing hidden.
base('ablate/nothing')
attention = 'none'
n_decoder = 6
pointer = False
hide = 0.0

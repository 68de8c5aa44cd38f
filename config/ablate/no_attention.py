# Twelve Mamba-2 layers and no attention, and so no pointer and nothing hidden.
base('ablate/nothing')
cross = 'lab.baselines:NoCross'
self_attention = 'torch.nn:Identity'
n_decoder = 6
pointer = False
hide = 0.0

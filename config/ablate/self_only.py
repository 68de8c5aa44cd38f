# Self-attention; no cross-attention, and so no pointer and nothing hidden.
base('ablate/nothing')
cross = 'lab.baselines:NoCross'
pointer = False
hide = 0.0

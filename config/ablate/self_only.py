# Self-attention; no cross-attention, and so no pointer and nothing hidden.
base('ablate/nothing')
attention = 'self'
pointer = False
hide = 0.0

# Cross-attention and its pointer; no self-attention.
base('ablate/nothing')
attention = 'cross'

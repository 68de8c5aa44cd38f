# Cross-attention and its pointer; no self-attention.
base('ablate/nothing')
self_attention = 'torch.nn:Identity'

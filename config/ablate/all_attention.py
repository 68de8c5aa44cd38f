# Attention only: twelve layers of it, no Mamba. Causal, over windows of 16 tokens, with about half
# of the parameters.
base('ablate/nothing')
mamba = False

# Attention only: twelve layers of it, no Mamba. Causal, over windows of 16 tokens, with about half of the parameters.
exec(open('config/ablate_nothing.py').read())
mamba = False

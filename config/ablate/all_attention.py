# Windowed attention only: twelve layers of it, no Mamba, with about half of the parameters.
base('ablate/nothing')
layer = 'SelfAttention'

# Attention only: twelve layers of it, no Mamba.
exec(open('config/ablate_nothing.py').read())
mamba = False

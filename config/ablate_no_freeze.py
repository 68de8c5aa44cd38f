# Time passes for the Mamba-2 layers in silence too.
exec(open('config/ablate_nothing.py').read())
freeze = False

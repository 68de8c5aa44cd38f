# Time passes for the Mamba-2 layers in silence too.
base('ablate/nothing')
freeze = False

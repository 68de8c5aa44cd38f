# No pointer: every frame is generated. Compare with no_blind, which hides nothing either.
exec(open('config/ablate_nothing.py').read())
pointer = False
blind = 0.0

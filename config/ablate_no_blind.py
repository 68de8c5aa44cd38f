# The decoder may look at everything it copies.
exec(open('config/ablate_nothing.py').read())
blind = 0.0

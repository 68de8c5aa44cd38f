# No pointer: every frame is generated.
exec(open('config/ablate_nothing.py').read())
pointer = False

# The decoder runs forward only.
exec(open('config/ablate_nothing.py').read())
backward = False

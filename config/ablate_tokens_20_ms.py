# Tokens of 20 ms.
exec(open('config/ablate_nothing.py').read())
patch = 2

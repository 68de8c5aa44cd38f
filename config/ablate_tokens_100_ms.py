# Tokens of 100 ms.
exec(open('config/ablate_nothing.py').read())
patch = 10

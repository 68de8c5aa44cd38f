# The sound alone is taught: no symbols, no depth of brackets.
exec(open('config/ablate_nothing.py').read())
w_symbols = 0.0
w_depth = 0.0

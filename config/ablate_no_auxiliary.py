# The sound alone is taught: no symbols, nothing of what the question comes to so far.
exec(open('config/ablate_nothing.py').read())
w_symbols = 0.0
w_so_far = 0.0

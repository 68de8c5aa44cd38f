# The sound alone is taught: no symbols, nothing of what the question comes to so far.
base('ablate/nothing')
w_symbols = 0.0
w_so_far = 0.0

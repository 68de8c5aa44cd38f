# The decoder may look at everything it copies.
base('ablate/nothing')
hide = 0.0

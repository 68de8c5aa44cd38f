# Tokens of 20 ms.
base('ablate/nothing')
patch = 2

# Tokens of 100 ms.
base('ablate/nothing')
patch = 10

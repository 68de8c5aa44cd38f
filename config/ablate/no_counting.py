# Every head forgets.
base('ablate/nothing')
counting = 0.0

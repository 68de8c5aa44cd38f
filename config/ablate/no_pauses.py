# No silent slots in the questions of training.
base('ablate/nothing')
pauses = '0'

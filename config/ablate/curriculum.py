# Difficulty rises with what has been learned.
base('ablate/nothing')
curriculum = 'adaptive'

# The difficulty rises over the first half of the updates.
base('ablate/nothing')
curriculum = 0.5

# Difficulty rises with what has been learned.
exec(open('config/ablate_nothing.py').read())
curriculum = 'adaptive'

# A control, for score.py: noise of the same energy in the place of every tone: nothing can be known.
spoil = 'noise'

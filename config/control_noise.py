# A control, for score.py: noise of the same energy in the place of every tone: what was asked cannot be known, only how long it was.
spoil = 'noise'

# A control, for score.py: noise of the same energy takes the place of every tone. What was asked
# cannot be known, only how long it was.
sound = 'noise'

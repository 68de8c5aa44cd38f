# A control, for score.py: the window ends with the last tone: nothing may change.
spoil = 'shorter'

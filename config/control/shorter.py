# A control, for score.py: the window ends with the last tone. Nothing may change.
sound = 'shorter'

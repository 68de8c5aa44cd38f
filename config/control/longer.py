# A control, for score.py: half a second more for the question and the answer. Nothing may change.
sound = 'longer'

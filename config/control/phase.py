# A control, for score.py: tones of other phases. Nothing may change.
sound = 'phase'

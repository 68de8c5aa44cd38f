# A control, for score.py: tones of other phases: nothing may change.
spoil = 'phase'

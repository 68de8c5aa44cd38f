# A control, for score.py: the window ends with the last tone. Nothing may change, but in tasks that
# are answered behind the question: inducto, twice.
sound = 'shorter'

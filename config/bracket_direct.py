# Is it balanced? At once: bracket.py without its working, for comparison.
exec(open('config/bracket.py').read())
aloud = ''

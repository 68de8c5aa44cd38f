# Is it balanced? At once: bracket.py without its working, for comparison.
base('bracket')
aloud = ''

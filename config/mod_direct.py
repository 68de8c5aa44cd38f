# Remainders at once: mod.py without its working, for comparison.
exec(open('config/mod.py').read())
aloud = ''

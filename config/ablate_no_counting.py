# Every head forgets.
exec(open('config/ablate_nothing.py').read())
counting = 0.0

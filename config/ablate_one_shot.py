# Nothing is worked out aloud.
exec(open('config/ablate_nothing.py').read())
aloud = ''

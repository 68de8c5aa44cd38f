# Nothing is worked out aloud.
base('ablate/nothing')
aloud = ''

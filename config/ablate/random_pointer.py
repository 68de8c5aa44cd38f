# The pointer starts out looking anywhere, not straight across.
base('ablate/nothing')
cross = 'lab.baselines:RandomPointer'

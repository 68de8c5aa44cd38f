# Mod alone, for as many updates as the multitask model spends on it.
base('ablate/nothing')
tasks = 'mod'
aloud = 'mod'
mix = 'error'
pauses = '7'
max_iters = 4300

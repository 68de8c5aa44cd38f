# The four puzzles, with which architectures are told apart.
base('logic')
tasks = 'logic,dyna,filtro,inducto'
aloud = 'logic,dyna,filtro'
pauses = '6,6,3,0'
mix = '2,3,2,2'
max_iters = 12000

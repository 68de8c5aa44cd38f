# One model for all seven tasks; which one is asked, it hears. Twenty minutes on an H200, best from
# weights of the first three: --init_from=out/multitask.
base('multitask')
tasks = 'mirror,bracket,mod,logic,dyna,filtro,inducto'
aloud = 'mod,bracket,logic,dyna,filtro'
pauses = '0,24,7,6,6,3,0'
mix = '15,6,43,8,9,8,9'
learning_rate = 1.4e-3
max_iters = 80000

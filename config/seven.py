# One model for all seven tasks; which one is asked, it hears. A quarter of an hour on an H200.
base('multitask')
tasks = 'mirror,bracket,mod,logic,dyna,filtro,inducto'
aloud = 'mod,bracket,logic,dyna,filtro'
pauses = '0,24,7,6,6,3,0'
mix = '3,3,14,2,5,2,3'
max_iters = 57000
lr_decay_iters = 57000

# One model for all seven tasks; which one is asked, it hears. Half an hour on an H100-class GPU.
base('multitask')
tasks = 'mirror,bracket,mod,logic,dyna,filtro,inducto'
aloud = 'mod,bracket,logic,dyna,filtro'
pauses = '0,24,7,6,6,3,0'
mix = '3,4,14,2,4,2,3'
max_iters = 80000
lr_decay_iters = 80000

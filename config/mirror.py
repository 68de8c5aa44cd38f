# Play back what you heard: letters A-J, 3 to 10 of them. Half a minute on two CPU cores.
tasks = 'mirror'
max_iters = 150
eval_interval = 50
eval_samples = 100

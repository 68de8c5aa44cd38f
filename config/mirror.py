# Play back what you heard. About a minute on two CPU cores.
out_dir = 'out/mirror'
tasks = 'mirror'

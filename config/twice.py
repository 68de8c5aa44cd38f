# Play back what you heard, twice. A minute on a laptop.
tasks = 'twice'
points_at = 'same,again'
max_iters = 200

# Play back what you heard, last letter first: a second place to point at. A minute on a laptop.
tasks = 'reverse'
points_at = 'same,end'
max_iters = 200

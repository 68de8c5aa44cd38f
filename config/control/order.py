# A control, for score.py: brackets with as many ( as ), in wrong order. Counting alone would call
# them balanced.
split = 'wrong_order'

# No attention: the decoder gets the encoder's token of the same moment, and nothing is pointed at.
exec(open('config/ablate_nothing.py').read())
attention = False

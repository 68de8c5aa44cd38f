# No attention: the decoder gets the encoder's token of the same moment, and nothing is pointed at. Compare with no_blind, which hides nothing either.
exec(open('config/ablate_nothing.py').read())
attention = False
blind = 0.0

# LSTMs of as many parameters in the place of every Mamba-2 layer.
base('ablate/nothing')
layer = 'lab.baselines:LSTM'

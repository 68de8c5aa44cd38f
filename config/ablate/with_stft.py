# With the two losses of the waveform that are off by default.
base('ablate/nothing')
w_wave = 1.0
w_stft = 0.2

# With the two losses of the waveform that are off by default.
exec(open('config/ablate_nothing.py').read())
w_wave = 1.0
w_stft = 0.2

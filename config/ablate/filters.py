# The encoder hears the waveform through 128 learned filters.
base('ablate/nothing')
front = 'lab.baselines:Filters'

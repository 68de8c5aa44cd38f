# The encoder hears 40 mel bands.
base('ablate/nothing')
front = 'lab.baselines:Mel'

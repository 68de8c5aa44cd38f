# One task after another: mirror, then bracket, then mod, a third of the updates each.
base('ablate/nothing')
mix = 'staged'

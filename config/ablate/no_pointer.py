# No pointer: every frame is generated. Compare with nothing_hidden, which hides nothing either.
base('ablate/nothing')
pointer = False
hide = 0.0

# A control: each question is taught another's answer, so there is nothing to learn. Held-out
# questions must stay at chance.
base('ablate/nothing')
aloud = ''
hide = 0.0
shuffled = True

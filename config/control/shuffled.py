# A control: each question is taught another's answer, so there is nothing to learn. Held-out
# brackets must stay at chance, 50 %.
base('bracket_direct')
shuffled = True

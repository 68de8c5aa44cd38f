# A control: each question is taught another's answer, so there is nothing to learn, and held-out brackets must stay at chance, 50 %.
exec(open('config/bracket_direct.py').read())
shuffled = True

# A row of operations on a row of letters, one operation a pass. Minutes on an H100-class GPU.
base('logic')
tasks = 'dyna'
aloud = 'dyna'
pauses = '6'

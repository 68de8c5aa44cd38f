# Which rule do these examples follow? At once: there is no working. Minutes on an H100-class GPU.
base('logic')
tasks = 'inducto'
aloud = ''
pauses = '0'
hide = 0.0

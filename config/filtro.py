# A path among the edges of two graphs, one step a pass. Minutes on an H100-class GPU.
base('logic')
tasks = 'filtro'
aloud = 'filtro'
pauses = '3'

# The symbols are taught in any alignment (CTC), not token by token.
base('ablate/nothing')
w_symbols = 0.0
w_ctc = 0.1
compile = False

# Raw samples in the place of the spectrum. At once, as one_shot: the rule that ends a conversation looks at the spectrum.
exec(open('config/ablate_nothing.py').read())
aloud = ''
spectrum = False

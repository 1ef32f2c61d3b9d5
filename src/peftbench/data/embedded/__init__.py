"""The embedded default: eight small data sets drawn from artwork and names that ship with the package.

``pack`` opens the artwork, ``scene`` draws, ``wording`` words answers as different people would; each data set
is one module here, named as in ``source.generator`` of its file in ``config/datasets/``.
"""

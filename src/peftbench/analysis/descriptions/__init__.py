"""Tables that describe a study rather than score it: one module for each kind.

Each has ``describe(spec, results) -> PlainTable``, and ``NEEDS``: "data" where it reads the prepared data sets,
else "".
"""

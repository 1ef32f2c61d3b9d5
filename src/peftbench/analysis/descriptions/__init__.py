"""Tables that describe a study rather than score it: one module for each kind.

Each has ``describe(spec, results) -> PlainTable``, or ``write(spec, results, out_dir)`` where it lays out its own; and
``NEEDS``: "data" where it reads the prepared data sets, else "".
"""

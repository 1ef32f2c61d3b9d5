"""Where a data set comes from: one module per ``source.kind`` of a data set file."""

"""Where a base model comes from: one module per ``source.kind`` of a model file."""

"""``peftbench watch``: a running study, as people expect to see it."""

"""One file per metric: the part per example and the part per corpus, equal to the official code."""

"""Tests and intervals for comparing runs: paired over test items, over seeds, and over data sets."""

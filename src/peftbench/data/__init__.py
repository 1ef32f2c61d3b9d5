"""Prepared data: the embedded pack, its generators, the preparation into parquet and the nested draws."""

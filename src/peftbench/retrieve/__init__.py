"""Fetching models and data sets: pinned, resumed, verified, and only here."""

"""Base models: names of their parts, loading, chat templates and the tiny model of the embedded default."""

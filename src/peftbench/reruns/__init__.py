"""Why jobs run again, when they need not, and what can go: ``explain``, ``bless`` and ``gc``."""

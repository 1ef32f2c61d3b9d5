"""Tables from public data sets and users' files: reading, joining, sampling, and turning rows into examples."""

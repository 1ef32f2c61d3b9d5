"""Tables and figures from score records."""

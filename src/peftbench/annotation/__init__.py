"""Hallucinations counted by people: blinded sheets, their import, agreement; beside them an automatic rate."""

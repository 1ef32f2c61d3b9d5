"""Tuners that peft lacks, written so that peft saves and loads them as its own."""

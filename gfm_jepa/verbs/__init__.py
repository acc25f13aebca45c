"""Verbs of the command line that read their own words, one a file."""

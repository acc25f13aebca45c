"""Verbs of the command line, one a module: words in, a call of the package, a line out."""

"""Judges: built-in ones, a Python callable, a language model behind an endpoint."""

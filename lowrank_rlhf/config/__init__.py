"""Settings of a run: their schema and a YAML loader. Imports no torch."""

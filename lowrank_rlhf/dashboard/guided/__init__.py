"""A new run from a few answers of a person who writes no YAML: settings, files, and the form that asks."""

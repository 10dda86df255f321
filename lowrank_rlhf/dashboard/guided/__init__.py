"""Settings of a run from a few answers of a person who writes no YAML."""

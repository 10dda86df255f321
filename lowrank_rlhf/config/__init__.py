"""The run's settings: the schema (`schema`) and how YAML becomes one (`loading`). Imports no torch."""

"""Functions that convert a row of one format to an example; `data/formats.py` has the table."""

"""Commands: one module for each, or for a few related ones; `cli.py` registers them."""

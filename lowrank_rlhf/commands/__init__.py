"""One module for each command, or for a few that belong together; `cli.py` makes them one program."""

"""The page: start runs, watch them, rank, talk to the result. Imports no torch; training is the CLI in its own process."""

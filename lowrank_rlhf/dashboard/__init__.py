"""The page: start runs, watch them, talk to the result. No torch here: training is the CLI in its own process."""

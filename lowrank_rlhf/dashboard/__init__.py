"""Dashboard: start and watch runs, rank answers, chat with models. Imports no torch: runs are processes of the CLI."""

"""Commands for people who rank, and for the owner of their project."""

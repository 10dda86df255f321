"""Rewards besides the reward model: rules and users' functions. Imports no torch."""

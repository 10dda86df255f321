"""Rewards that the policy is trained on: the reward model, or a weighted sum with rules and functions."""

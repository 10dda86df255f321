"""Evaluation: held-out answers, matches between models, win rates, reward metrics."""

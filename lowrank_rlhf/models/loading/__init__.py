"""Checks of a loaded model, before any stage spends time on it."""

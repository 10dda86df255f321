"""Sentence encoders of the simulated annotators."""

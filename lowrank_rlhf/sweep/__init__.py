"""Sweeps: runs that differ in a few settings, the stages they share, and their comparison."""

"""Forecast of a run's memory, disk and time before it starts. Imports no torch."""

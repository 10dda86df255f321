"""Several runs that differ in a few settings: which ones, what they share, and how they compare."""

"""The files and figures the page serves beside its tabs."""

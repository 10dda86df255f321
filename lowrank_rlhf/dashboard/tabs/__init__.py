"""Tabs of the dashboard, one module each, with their HTML."""

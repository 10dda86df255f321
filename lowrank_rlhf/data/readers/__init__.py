"""Readers of JSONL, tables, folders and the hub: rows with their place in the source."""

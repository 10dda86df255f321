"""Exports: adapters, merged models, GGUF files, model cards, the hub."""

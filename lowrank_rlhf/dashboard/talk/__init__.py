"""Conversations of the tab Talk: their state, their HTML, and blind votes."""

"""Formulas as pure functions. One mask polarity everywhere: True is a real response token.

B rows, T token positions, N selected tokens, h hidden size, V vocabulary.
"""

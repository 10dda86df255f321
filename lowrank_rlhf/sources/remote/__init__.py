"""Downloads from the Hugging Face hub, ModelScope and Python package indexes. Imports no torch."""

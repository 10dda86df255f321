"""Find, fetch, convert, check and describe the base model and its tokenizer."""

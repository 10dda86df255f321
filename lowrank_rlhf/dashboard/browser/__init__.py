"""Scripts that run in the browser: the address, its storage, and drafts of settings."""

"""Scripts that run in the browser: the address, and the browser's storage."""

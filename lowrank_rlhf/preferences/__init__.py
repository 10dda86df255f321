"""Rankings and comparisons: the store, the queue of items, judges, import and export."""

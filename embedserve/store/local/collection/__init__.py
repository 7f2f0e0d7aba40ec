"""One collection: its items, its searches, its index in step with its records."""

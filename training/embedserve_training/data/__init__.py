"""Images of a folder, decoded once, in batches."""

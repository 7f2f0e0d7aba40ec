"""The images of a folder: listed, decoded once, and given in batches."""

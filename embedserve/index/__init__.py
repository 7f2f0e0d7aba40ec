"""Nearest-neighbour search over arrays of unit vectors.

An index is a cache: it knows vectors and row numbers and can be rebuilt from the store's records at any time. It
knows nothing of files, ids or metadata.
"""

"""Nearest-neighbour search over arrays of unit vectors.

An index is a cache of vectors, row numbers and ids; it can be rebuilt from the store's records at any time. It knows
nothing of files or metadata.
"""

"""Scenarios of `make soak` with servers of their own; each can be run alone."""

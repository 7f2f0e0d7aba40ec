"""The state of a server from start to drain, and the health and replacement of its encoder."""

"""The state of a server from start to drain, and of the encoder in it."""

"""The encoder: its self-describing file, and the sessions that run it on CPU or GPU."""

"""Scenarios of the soak, each with a server of its own, and each runnable alone."""

"""A training run: preparation, steps, checkpoints, the encoder that comes of it."""

"""A training run: preparation, steps, checkpoints, and the encoder that it produces."""

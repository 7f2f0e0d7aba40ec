"""Whether a run learns: figures without labels, and signs of collapse."""

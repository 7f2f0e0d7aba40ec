"""Whether a run learns: progress, measures without labels, and signs of collapse."""

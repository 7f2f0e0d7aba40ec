"""Training in several processes: what they exchange, and how they join and leave."""

"""Collections of items: durable records with an index over their vectors."""

"""Collections in one data directory: SQLite is the truth, FAISS indexes are made from it."""

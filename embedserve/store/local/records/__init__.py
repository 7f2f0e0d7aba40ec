"""What is stored in SQLite: the catalog of collections, and the rows of each of them."""

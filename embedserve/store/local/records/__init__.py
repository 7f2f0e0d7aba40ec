"""What lies in SQLite: the catalog of collections, and the rows of each one."""

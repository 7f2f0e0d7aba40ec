"""Work on collections besides their use: sealing, checks, backups, restores."""

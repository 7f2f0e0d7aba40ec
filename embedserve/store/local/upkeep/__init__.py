"""What is done to collections beside their use: sealing, checks, backups, restores."""

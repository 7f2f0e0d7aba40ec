"""What search_peers.py is made of: data, loads, the processes that systems run in, and tables."""

"""The parts of search_peers.py: data, the systems and their processes, the comparison, and its tables."""

"""What the benchmarks of serving share: the bare loop, the machine, clients and servers."""

"""The harness of the benchmarks: loads, turns and figures, meters, machine facts, clients and servers."""

"""Search parameters that several systems are tried with, from the fastest to the most accurate."""

EF = (16, 24, 32, 40, 48, 64, 96, 128, 192, 256, 384, 512)
"""Candidates that a search in a graph keeps."""

NPROBE = (4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Inverted lists that are scanned."""

EF_STEPS = tuple(f"ef={ef}" for ef in EF)


def number_of(step: str) -> int:
    """The number of a step such as ef=16."""
    return int(step.partition("=")[2])

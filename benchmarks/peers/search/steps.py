"""Settings of the search that several systems are tried with, from the fastest to the most accurate."""

EF = (16, 24, 32, 40, 48, 64, 96, 128, 192, 256, 384, 512)
"""Candidates that a graph keeps."""

NPROBE_AND_FACTOR = ((4, 4), (8, 4), (12, 4), (16, 4), (16, 8), (24, 8), (32, 8), (48, 8), (64, 8), (96, 16), (128, 16))
"""Lists that are looked through, and how many times k candidates are scored again with their vectors."""

NPROBE = tuple(sorted({nprobe for nprobe, _ in NPROBE_AND_FACTOR}))
EF_STEPS = tuple(f"ef={ef}" for ef in EF)


def number_of(step: str) -> int:
    """ef of one of EF_STEPS."""
    return int(step.partition("=")[2])

"""Seeds of everything that is random in a run, each a function of the run's seed, of what it is for, and of when."""

from __future__ import annotations

import hashlib


def seed_of(seed: int, purpose: str, when: int) -> int:
    """A seed for one purpose at one step or epoch, within 0–4294967295.

    torch's generator on the CPU looks at the lower 32 bits of a seed only, so they have to differ: a seed shifted to
    the left of the step would leave one bit of it. Within a run no two steps have the same; runs of different seeds
    have other ones, but for a chance of their number of steps in four thousand million.

    Args:
        seed: of the run.
        purpose: what is drawn, as in "views".
        when: step or epoch, from 0.
    """
    start = int.from_bytes(hashlib.blake2b(f"{purpose} {seed}".encode(), digest_size=4).digest())
    return (start + when) % (1 << 32)

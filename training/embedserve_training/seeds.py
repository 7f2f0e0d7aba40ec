"""Seeds for everything that is random in a run, each a function of the run's seed, a purpose and a step or epoch."""

from __future__ import annotations

import hashlib


def seed_of(seed: int, purpose: str, when: int) -> int:
    """A seed for one purpose at one step or epoch, within 0–4294967295.

    torch's generator on the CPU uses only the lower 32 bits of a seed, so they must differ: with the seed shifted to
    the left of the step, only one bit of it would count. Within a run no two steps have the same seed; runs with
    different seeds share some with a probability of about their number of steps in 2³².

    Args:
        seed: of the run.
        purpose: what is drawn, such as "views".
        when: step or epoch, from 0.
    """
    start = int.from_bytes(hashlib.blake2b(f"{purpose} {seed}".encode(), digest_size=4).digest())
    return (start + when) % (1 << 32)

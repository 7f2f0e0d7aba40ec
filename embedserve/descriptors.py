"""How many files and connections this process may have open: raised as far as the system allows, and shared out.

Where the soft limit is 1,024, which is usual, a thousand idle connections would leave nothing for the files of the
collections, for probes and for the encoder file that is read again.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

try:
    import resource
except ImportError:  # Windows, where descriptors are not limited in this way
    resource = None  # type: ignore[assignment]

RESERVE = 64
"""Descriptors that connections leave to everything else: files of collections, probes, an encoder file read again."""

_LEAST_CONNECTIONS = 16
_AT_MOST = 1 << 20
"""More is asked for by nothing here, and some systems name a limit of 2⁶³ − 1 that they do not grant."""

_TABLE = next((path for path in map(Path, ("/proc/self/fd", "/dev/fd")) if path.is_dir()), None)


def raise_limit() -> None:
    """Raise the soft limit to the hard one, which needs no privilege; nothing happens where that is not possible."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _AT_MOST if hard == resource.RLIM_INFINITY else min(hard, _AT_MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit() -> int:
    """Descriptors that this process may have open now."""
    if resource is None:
        return _AT_MOST
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _AT_MOST if soft == resource.RLIM_INFINITY else min(soft, _AT_MOST)


def in_use() -> int | None:
    """Descriptors that are open now; None where the system does not tell."""
    try:
        return None if _TABLE is None else len(os.listdir(_TABLE)) - 1  # noqa: PTH208 (five times as fast)
    except OSError:  # the list itself needs one, so all are in use
        return limit()


def connections_allowed(wanted: int) -> int:
    """gRPC connections that may be open: as many as are wanted, but no more than half of the descriptors."""
    return max(min(wanted, limit() // 2), _LEAST_CONNECTIONS)


def warning(wanted: int) -> str:
    """What the operator should know of a low limit; empty if it is high enough for the wanted connections."""
    if (allowed := connections_allowed(wanted)) >= wanted:
        return ""
    return (
        f"the process may open only {limit():,} files: at most {allowed:,} connections at a time instead of {wanted:,},"
        f" and few collections; raise it with ulimit -n {4 * wanted} (systemd: LimitNOFILE={4 * wanted})"
    )

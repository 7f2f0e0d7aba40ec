"""The images of a run by name and content, so that a run which is continued can say which ones have changed.

``images.jsonl`` in the run folder: a line with the version, then for each image a line with its name and the first half
of the sha256 of its bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedserve.atomic_write import write_text

NAME = "images.jsonl"
_VERSION = 1
_DIGITS = 32
_NAMED = 3
"""Images of each kind that a message names."""


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What differs between the images of a run and those of its folder now, by name."""

    new: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def __str__(self) -> str:
        """As in "2 are new: a.png, b.png; 1 is gone: c.png"."""
        kinds = (
            (self.new, "is new", "are new"),
            (self.gone, "is gone", "are gone"),
            (self.changed, "has other bytes", "have other bytes"),
        )
        return "; ".join(
            f"{len(names)} {one if len(names) == 1 else many}: {_listed(names)}" for names, one, many in kinds if names
        )


def _listed(names: Sequence[str]) -> str:
    # A name may hold bytes that are no text, or a line break.
    shown = [name if name.isprintable() else ascii(name)[1:-1] for name in names[:_NAMED]]
    return ", ".join(shown) + (", …" if len(names) > _NAMED else "")


def write(digests: Mapping[str, str], run: Path) -> None:
    """Write the list: name → hex digits of the sha256 of its bytes."""
    lines = [json.dumps({"version": _VERSION})]
    lines += [json.dumps([name, digest[:_DIGITS]]) for name, digest in digests.items()]
    write_text(run / NAME, "".join(f"{line}\n" for line in lines))


def changes_since(run: Path, digests: Mapping[str, str]) -> Changes | None:
    """What differs from the list of a run; None if it has none that can be read, as runs of older versions."""
    try:
        head, *lines = (run / NAME).read_text(encoding="utf-8").splitlines()
        if json.loads(head)["version"] != _VERSION:
            return None
        before: dict[str, str] = dict(json.loads(line) for line in lines)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    now = {name: digest[:_DIGITS] for name, digest in digests.items()}
    return Changes(
        new=tuple(name for name in now if name not in before),
        gone=tuple(name for name in before if name not in now),
        changed=tuple(name for name, digest in now.items() if before.get(name, digest) != digest),
    )

"""Descriptions of a collection: its encoder, index, recall, times and size."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from embedserve.types import CollectionInfo, Recall


def encoder_text(info: CollectionInfo) -> str:
    """The encoder that the collection is bound to, as in "photos (3f7a0c52e9d1)"."""
    return "external" if info.external else f"{info.encoder_name} ({info.fingerprint[:12]})"


def index_text(info: CollectionInfo) -> str:
    """How many rows the index holds, and where."""
    rows = [
        f"{info.segments} segments",
        f"{info.unsealed:,} items compared one by one",
        f"{info.deleted:,} deleted rows",
    ]
    return ", ".join([*rows, "being built"] if info.building else rows)


def recall_text(info: CollectionInfo) -> str:
    """Recall and target, as in "0.973 with 100 queries of clients, measured …; target 0.95"."""
    target = f"target {info.target_recall:g}"
    if info.recall is None:
        return f"{'every search is exact' if info.index.startswith('exact') else 'not measured yet'}; {target}"
    below = " (below)" if info.recall.value < info.target_recall else ""
    return f"{measured_text(info.recall)}; {target}{below}"


def measured_text(recall: Recall) -> str:
    """A measured recall, with its queries and its time."""
    whose = "queries of clients" if recall.real else "of its own vectors as queries"
    return f"{recall.value:.3f} with {recall.queries} {whose}, measured {time_text(recall.measured_unix_s)}"


def time_text(unix_s: float) -> str:
    """A time in the zone of this machine, as in "2026-11-24 09:30:00+01:00"."""
    from datetime import datetime

    return datetime.fromtimestamp(unix_s).astimezone().isoformat(sep=" ", timespec="seconds")


def size_text(size_bytes: int) -> str:
    """A size in the unit that suits it, as in "172.0 KiB"."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"

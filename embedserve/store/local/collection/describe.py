"""What a collection is and holds, for its users."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from embedserve.errors import EmbedserveError
from embedserve.index import compaction
from embedserve.index.compaction import WriteActivity
from embedserve.index.snapshot import Snapshot
from embedserve.store.local.collection.collection import Collection
from embedserve.store.local.records.database import translate_errors
from embedserve.types import CollectionInfo

_log = logging.getLogger("embedserve.store")


def describe(collection: Collection, aliases: Sequence[str], *, in_list: bool = False) -> CollectionInfo:
    """What the collection is and holds.

    Args:
        collection: is described.
        aliases: that point to it.
        in_list: report a directory that cannot be read as empty, and log why, so that others are listed beside it.

    Raises:
        StoreError: its directory cannot be read.
    """
    entry, snapshot = collection.entry, collection.snapshot
    could_build = compaction.next_step(snapshot.parts, entry.dimension, WriteActivity(idle=True, due=True))
    return CollectionInfo(
        name=entry.name,
        fingerprint=entry.fingerprint,
        encoder_name=entry.encoder_name,
        dimension=entry.dimension,
        keep=entry.keep,
        created_unix_s=entry.created_unix_s,
        items=snapshot.items,
        aliases=tuple(sorted(aliases)),
        index=_index_text(collection, snapshot),
        disk_bytes=_disk_bytes(collection.directory, in_list=in_list),
        uid=entry.uid,
        index_spec=entry.index,
        target_recall=entry.target_recall,
        filter_keys=entry.filter_keys,
        recall=collection.recall.last if snapshot.is_approximate else None,
        building=collection.build_state.lock.locked() or could_build is not None,
        segments=len(snapshot.segments),
        unsealed=snapshot.unsealed,
        deleted=snapshot.deleted,
    )


def _index_text(collection: Collection, snapshot: Snapshot) -> str:
    """What answers searches, as in "hnsw, ef 64 for recall 0.95", and what was given up for it."""
    target, recall = collection.entry.target_recall, collection.recall
    params = replace(collection.default_params, exact=False)
    by_kind: dict[str, list[int]] = {}
    given_up = {shortfall.spec: shortfall.recall for part in snapshot.segments for shortfall in part.shortfalls}
    for segment in snapshot.segments:
        if segment.structure is not None:
            if recall.exact:
                given_up[str(segment.spec)] = recall.found
            elif param := segment.param(params):
                by_kind.setdefault(str(segment.spec), []).append(param)
            else:
                given_up[str(segment.spec)] = segment.max_recall
    texts = []
    for kind, values in by_kind.items():
        name = "ef" if kind.startswith("hnsw") else "nprobe"
        between = f"{min(values)}" if len(set(values)) == 1 else f"{min(values)} to {max(values)}"
        texts.append(f"{kind}, {name} {between} for recall {target:g}")
    texts = texts or ["exact (flat inner product)"]
    texts += [f"{kind} was given up: at most recall {value:.3f}" for kind, value in given_up.items()]
    return "; ".join(texts)


def _disk_bytes(directory: Path, *, in_list: bool) -> int:
    try:
        return _bytes_below(directory)
    except EmbedserveError as error:
        if not in_list:
            raise
        _log.error("the size of a collection is not known", extra={"fields": {"reason": str(error)}})
        return 0


def _bytes_below(directory: Path) -> int:
    with translate_errors(directory):
        # Not rglob: it fails where the directory of a segment is removed meanwhile.
        return sum(_size(Path(path) / name) for path, _, names in os.walk(directory) for name in names)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else 0
    except FileNotFoundError:  # removed meanwhile
        return 0

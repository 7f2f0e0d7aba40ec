"""Segments on disk, beside the records from which they can be rebuilt.

    segments/CURRENT.json             the segments in use, in order
    segments/<uid>/manifest.json      what a segment contains, with size and sha256 of each file
    segments/<uid>/rids.i64, ids.utf8, ids.ends.i64, vectors.f32, index.faiss, copies.i64

A directory is written under a temporary name, synced, renamed, and only then listed in CURRENT.json; directories that
are not listed are removed. Files are mapped, not read, except that a start hashes each of them: the format of FAISS has
no checksum, and an index with a zeroed page loads and returns wrong results.
"""

from __future__ import annotations

import errno
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import faiss
import numpy as np
from numpy.typing import NDArray

from embedserve.atomic_write import create_private, make_private_directory, private, sync
from embedserve.errors import InvalidInput, StoreError
from embedserve.index import spec, structures
from embedserve.index.copies import NO_COPIES, Copies
from embedserve.index.ids import PackedIds
from embedserve.index.segment import Segment, Shortfall, Unreachable
from embedserve.index.structures import Hnsw
from embedserve.index.tuning import OperatingPoint
from embedserve.observer import Observer
from embedserve.store.local.collection.mapped_file import mapped_bytes
from embedserve.store.local.records.database import translate_errors
from embedserve.store.local.records.files import read_document, sha256_of, write_document

_log = logging.getLogger("embedserve.store")

_FORMAT = 1
_WITH_COPIES = 2
"""Of a segment whose structure does not lead to copies: to older releases it is damaged, and rebuilt by them."""
_RIDS, _IDS, _ENDS, _VECTORS, _INDEX = "rids.i64", "ids.utf8", "ids.ends.i64", "vectors.f32", "index.faiss"
_COPIES = "copies.i64"

_Number = TypeVar("_Number", np.int64, np.float32, np.uint8)


class SegmentFiles:
    """The files of the segments of one collection.

    Args:
        directory: of the collection.
        dimension: D.
        fingerprint: of the encoder that made the vectors.
        observer: told about segments that cannot be used.
    """

    def __init__(self, directory: Path, dimension: int, fingerprint: str, observer: Observer | None = None) -> None:
        self.directory = directory / "segments"
        self._current = self.directory / "CURRENT.json"
        self._dimension = dimension
        self._fingerprint = fingerprint
        self._observer = observer or Observer()
        self.named: list[str] | None = []
        """Uids in CURRENT.json when it was last read or written; None if it could not be read."""

    def load(self) -> tuple[list[Segment], int]:
        """The segments in use whose files are intact, in order, and the sequence number they were made at.

        Damaged ones are left out and logged; directories of other segments are removed.
        """
        self.named, seq = self._current_segments()
        segments = []
        for uid in self.named or ():
            try:
                segments.append(self._read(uid))
            except (OSError, ValueError, KeyError, TypeError, InvalidInput) as error:
                self.report_rebuild("damaged", str(error))
        self.remove_others({segment.uid for segment in segments})
        return segments, seq

    def write(self, segment: Segment, seq: int) -> Segment:
        """Write a segment that was built in memory; on disk when this returns, but not yet in use.

        Args:
            segment: to be written.
            seq: the last write in it.

        Returns:
            The same segment, over its mapped files.

        Raises:
            DiskFull, StoreError: no file of it is left.
        """
        path = self.directory / segment.uid
        partial = path.with_name(path.name + ".tmp")
        with translate_errors(self.directory):
            make_private_directory(self.directory)
            try:
                partial.mkdir(mode=0o700)
                self._write_files(segment, partial, seq)
                partial.rename(path)
                sync(self.directory)
                return self._opened(segment.uid, read_document(path / "manifest.json"))
            except RuntimeError as error:  # what FAISS raises for any error of the file system
                self._remove(segment.uid)
                number = errno.ENOSPC if "No space" in str(error) else errno.EIO
                raise OSError(number, str(error), str(partial)) from error
            except ValueError as error:
                self._remove(segment.uid)
                raise StoreError(f"a new segment cannot be read: {error}", hint="check the disk") from error
            except BaseException:
                self._remove(segment.uid)
                raise

    def write_tuning(self, segment: Segment) -> None:
        """Replace what is on disk about the search parameters of a segment in use; on disk when this returns."""
        path = self.directory / segment.uid / "manifest.json"
        with translate_errors(self.directory):
            try:
                manifest = read_document(path)
            except ValueError as error:
                raise StoreError(str(error), hint="check the collection: embedserve collection check NAME") from error
            manifest["points"] = [[point.param, point.recall] for point in segment.points]
            write_document(path, {**manifest, "tuning": segment.tuning})

    def use(self, segments: Sequence[Segment], seq: int) -> None:
        """Use these segments from now on, on disk when this returns, and remove all others."""
        uids = [segment.uid for segment in segments]
        with translate_errors(self.directory):
            make_private_directory(self.directory)  # missing if deleted rows were dropped before the first seal
            write_document(self._current, {"format": _FORMAT, "segments": uids, "seq": seq})
        self.named = uids
        self.remove_others(set(uids))

    def remove_others(self, uids: set[str]) -> None:
        """Remove the files of all other segments. Mapped ones stay readable."""
        if not self.directory.is_dir():
            return
        for path in self.directory.iterdir():
            if path.is_dir() and path.name not in uids:
                shutil.rmtree(path, ignore_errors=True)

    def report_rebuild(self, reason: str, why: str, **fields: object) -> None:
        """Tell the log and the observer that a segment, or the whole index, is not used but rebuilt, and why."""
        fields = {"reason": reason, "why": why, "path": str(self.directory), **fields}
        _log.warning("an index is rebuilt from the items", extra={"fields": fields})
        self._observer.on_index_rebuilt(reason)

    def problems(self, uid: str, check: Callable[[], None] = lambda: None) -> list[str]:
        """What is wrong with the files of a segment: one sentence for each that has changed.

        ``check`` is called for every MiB; an exception from it ends the work.
        """
        try:
            return _wrong_files(self.directory / uid, read_document(self.directory / uid / "manifest.json"), check)
        except (OSError, ValueError, KeyError, TypeError) as error:
            return [str(error)]

    # --- One segment ----------------------------------------------------------------

    def _remove(self, uid: str) -> None:
        for name in (uid, uid + ".tmp"):
            shutil.rmtree(self.directory / name, ignore_errors=True)

    def _current_segments(self) -> tuple[list[str] | None, int]:
        if not self.directory.exists():
            return [], 0
        try:
            document = read_document(self._current)
            if document["format"] != _FORMAT:
                raise ValueError(f"{self._current} has format {document['format']}; this release reads {_FORMAT}")
            return [str(uid) for uid in document["segments"]], int(document["seq"])
        except FileNotFoundError:
            return [], 0
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.report_rebuild("damaged", str(error))
            return None, 0

    def _write_files(self, segment: Segment, path: Path, seq: int) -> None:
        assert isinstance(segment.ids, PackedIds)
        arrays: dict[str, NDArray[Any]] = {
            _RIDS: segment.rids.astype("<i8", copy=False),
            _IDS: segment.ids.text,
            _ENDS: segment.ids.ends.astype("<i8", copy=False),
        }
        if len(segment.copies):
            arrays[_COPIES] = segment.copies.pairs().astype("<i8", copy=False)
        if not isinstance(segment.structure, Hnsw):
            arrays[_VECTORS] = segment.vectors.astype("<f4", copy=False)
        for name, array in arrays.items():
            with open(path / name, "wb", opener=private) as file:
                file.write(np.ascontiguousarray(array).data)
        if segment.structure is not None:
            create_private(path / _INDEX)
            segment.structure.write(path / _INDEX)
        files = {}
        for name in [*arrays, *([] if segment.structure is None else [_INDEX])]:
            sync(path / name)
            files[name] = {"bytes": (path / name).stat().st_size, "sha256": sha256_of(path / name)}
        write_document(
            path / "manifest.json",
            {
                "format": _WITH_COPIES if len(segment.copies) else _FORMAT,
                "uid": segment.uid,
                "seq": seq,
                "rows": len(segment),
                "dimension": self._dimension,
                "fingerprint": self._fingerprint,
                "index": str(segment.spec),
                "points": [[point.param, point.recall] for point in segment.points],
                "tuning": segment.tuning,
                "shortfalls": [[shortfall.spec, shortfall.recall] for shortfall in segment.shortfalls],
                "strays": segment.unreachable.positions.tolist(),
                "faiss": faiss.__version__,
                "files": files,
            },
        )

    def _read(self, uid: str) -> Segment:
        path = self.directory / uid
        manifest = read_document(path / "manifest.json")
        expected = {
            "format": _WITH_COPIES if _COPIES in manifest["files"] else _FORMAT,
            "uid": uid,
            "dimension": self._dimension,
            "fingerprint": self._fingerprint,
        }
        for key, value in expected.items():
            if manifest[key] != value:
                raise ValueError(f"{path / 'manifest.json'} says {key} {manifest[key]!r}, not {value!r}")
        begun = time.monotonic()
        if problems := _wrong_files(path, manifest):
            raise ValueError("; ".join(problems))
        seconds = time.monotonic() - begun
        if seconds > 1:
            _log.info("segment hashed", extra={"fields": {"segment": uid, "seconds": round(seconds, 1)}})
        return self._opened(uid, manifest)

    def _opened(self, uid: str, manifest: dict[str, Any]) -> Segment:
        path = self.directory / uid
        rows = int(manifest["rows"])
        rids = _mapped(path / _RIDS, "<i8", np.int64)
        ids = PackedIds(_mapped(path / _IDS, "u1", np.uint8), _mapped(path / _ENDS, "<i8", np.int64))
        vectors = None
        if _VECTORS in manifest["files"]:
            vectors = _mapped(path / _VECTORS, "<f4", np.float32).reshape(-1, self._dimension)
        pairs = None
        if _COPIES in manifest["files"]:
            pairs = _mapped(path / _COPIES, "<i8", np.int64).reshape(-1, 2)
        structure = None
        if _INDEX in manifest["files"]:
            kind, unindexed = spec.parse(manifest["index"]), 0 if pairs is None else len(pairs)
            structure = structures.open_structure(kind, path / _INDEX, vectors, unindexed)
            if isinstance(structure, Hnsw):
                vectors = structure.vectors
        if vectors is None or vectors.shape != (rows, self._dimension) or not len(rids) == len(ids) == rows:
            raise ValueError(f"{path} does not contain {rows} rows of {self._dimension} numbers")
        if rows and (int(ids.ends[-1]) != len(ids.text) or (np.diff(rids) <= 0).any()):
            raise ValueError(f"the row numbers in {path} do not ascend")
        points = tuple(OperatingPoint(int(param), float(recall)) for param, recall in manifest["points"])
        unreachable = Unreachable.of(vectors, np.array(manifest["strays"], np.int64))
        copies = NO_COPIES if pairs is None else Copies.hanging(pairs[:, 0], pairs[:, 1], vectors)
        if pairs is not None and len(copies) != len(pairs):
            raise ValueError(f"rows that {path / _COPIES} says are equal are not")
        shortfalls = tuple(Shortfall(str(kind), float(recall)) for kind, recall in manifest.get("shortfalls", ()))
        tuned = int(manifest.get("tuning", 1))
        return Segment(vectors, rids, ids, None, rows, uid, structure, points, unreachable, copies, shortfalls, tuned)


def _wrong_files(path: Path, manifest: dict[str, Any], check: Callable[[], None] = lambda: None) -> list[str]:
    problems = []
    for name, file in manifest["files"].items():
        found = path / name
        if not found.is_file():
            problems.append(f"{found} is missing")
        elif found.stat().st_size != file["bytes"]:
            problems.append(f"{found} has {found.stat().st_size} bytes, not {file['bytes']}")
        elif sha256_of(found, check) != file["sha256"]:
            problems.append(f"{found} is damaged: it does not match its hash")
    return problems


def _mapped(path: Path, stored: str, kind: type[_Number]) -> NDArray[_Number]:
    """The numbers in a file, mapped, in the byte order of this machine."""
    return mapped_bytes(path).view(stored).astype(kind, copy=False)

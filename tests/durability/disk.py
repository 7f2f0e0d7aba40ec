"""What a disk contains after a power cut: the writes of a store are recorded, and the disk of any moment is rebuilt.

SQLite writes through our own file system (a VFS of APSW); what Python does to files and directories is recorded by
functions around those of ``os``. Only what was synced before the cut is certainly on disk. Of the rest each sector of
512 bytes, each new length of a file and each entry of a directory is there or not, by chance.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import apsw

SECTOR = 512


class Node:
    """A file or a directory, independent of its name; compared by identity."""

    def __init__(self, *, is_directory: bool) -> None:
        self.entries: dict[str, Node] | None = {} if is_directory else None
        """The entries of a directory in the running system."""


@dataclass(frozen=True, slots=True)
class Write:
    node: Node
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    node: Node
    size: int


@dataclass(frozen=True, slots=True)
class Entry:
    """Names of one directory that change together: new ones, and with None those that are removed."""

    node: Node
    names: dict[str, Node | None]


@dataclass(frozen=True, slots=True)
class Sync:
    node: Node
    covers: int
    """Earlier events of this node are on disk now."""


@dataclass(frozen=True, slots=True)
class Mark:
    """No event of the disk: a call began or was acknowledged."""

    writer: int
    step: int
    acknowledged: bool


Event = Write | Truncate | Entry | Sync | Mark


class Disk:
    """Records what happens below ``root``, an empty directory."""

    def __init__(self, root: Path) -> None:
        self.path = root
        self.root = Node(is_directory=True)
        self.events: list[Event] = []
        self._noted: dict[Node, bytes] = {}
        self._lock = threading.RLock()

    def mark(self, writer: int, step: int, *, acknowledged: bool) -> None:
        self._add(Mark(writer, step, acknowledged))

    def holds(self, path: str) -> bool:
        return Path(path).is_relative_to(self.path)

    def wrote(self, node: Node, offset: int, data: bytes) -> None:
        self._add(Write(node, offset, data))

    def cut(self, node: Node, size: int) -> None:
        self._add(Truncate(node, size))

    def synced(self, node: Node, before: int) -> None:
        """A sync that began after this number of events has ended."""
        self._add(Sync(node, before))

    def node(self, path: str) -> Node:
        """The node at a path, which is new in its directory if it was not seen before."""
        with self._lock:
            if Path(path) == self.path:
                return self.root
            parent = self.node(str(Path(path).parent))
            assert parent.entries is not None
            name = Path(path).name
            if name not in parent.entries:
                parent.entries[name] = Node(is_directory=Path(path).is_dir())
                self._add(Entry(parent, {name: parent.entries[name]}))
            return parent.entries[name]

    def removed(self, path: str) -> None:
        with self._lock:
            parent = self.node(str(Path(path).parent))
            assert parent.entries is not None
            if parent.entries.pop(Path(path).name, None) is not None:
                self._add(Entry(parent, {Path(path).name: None}))

    def renamed(self, old: str, new: str) -> None:
        with self._lock:
            node = self.node(old)
            source, target = self.node(str(Path(old).parent)), self.node(str(Path(new).parent))
            assert source.entries is not None
            assert target.entries is not None
            del source.entries[Path(old).name]
            target.entries[Path(new).name] = node
            if source is target:
                self._add(Entry(source, {Path(old).name: None, Path(new).name: node}))
            else:
                self._add(Entry(target, {Path(new).name: node}))
                self._add(Entry(source, {Path(old).name: None}))

    def note_content(self, path: str) -> None:
        """What Python or a library has written into a file directly, which may not be synced."""
        if Path(path).is_dir():
            for name in sorted(os.listdir(path)):  # noqa: PTH208, as Path would do the same in more words
                if not name.endswith("-shm"):
                    self.note_content(str(Path(path) / name))
            self.node(path)
        elif not _of_sqlite(path):
            node, content = self.node(path), Path(path).read_bytes()
            if self._noted.get(node) != content:
                self._noted[node] = content
                self.cut(node, 0)
                self.wrote(node, 0, content)

    def _add(self, event: Event) -> None:
        with self._lock:
            self.events.append(event)


def _of_sqlite(path: str) -> bool:
    return path.endswith((".sqlite", ".sqlite-wal", ".sqlite-journal", ".sqlite-shm"))


# --- Recording -----------------------------------------------------------------------------------------------------


class RecordingFiles(apsw.VFS):
    """SQLite's file system, with a record of what it does."""

    def __init__(self, name: str, disk: Disk) -> None:
        self._disk = disk
        super().__init__(name, "")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        if name is None or path is None:
            return apsw.VFSFile("", name, flags)
        opened = _RecordedFile(name, flags)
        opened.attach(self._disk, path, flags[0])
        return opened

    def xDelete(self, name: str, sync_directory: bool) -> None:
        super().xDelete(name, sync_directory)
        self._disk.removed(name)
        if sync_directory:
            self._disk.synced(self._disk.node(str(Path(name).parent)), len(self._disk.events))


class _RecordedFile(apsw.VFSFile):
    def __init__(self, name: str | apsw.URIFilename, flags: list[int]) -> None:
        super().__init__("", name, flags)

    def attach(self, disk: Disk, path: str, flags: int) -> None:
        self._disk = disk
        self._node = disk.node(path)
        journal = apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL | apsw.SQLITE_OPEN_WAL
        # As in os_unix.c: the first sync of a new journal or log syncs its directory too.
        self._directory = (
            disk.node(str(Path(path).parent)) if flags & apsw.SQLITE_OPEN_CREATE and flags & journal else None
        )

    def xWrite(self, data: bytes, offset: int) -> None:
        self._disk.wrote(self._node, offset, bytes(data))
        super().xWrite(data, offset)

    def xTruncate(self, size: int) -> None:
        self._disk.cut(self._node, size)
        super().xTruncate(size)

    def xSync(self, flags: int) -> None:
        before = len(self._disk.events)
        super().xSync(flags)
        self._disk.synced(self._node, before)
        if self._directory is not None:
            self._disk.synced(self._directory, before)
            self._directory = None


@contextmanager
def watched(disk: Disk) -> Iterator[None]:
    """Record changes of files and directories by Python too."""
    real = {name: getattr(os, name) for name in ("mkdir", "rmdir", "unlink", "remove", "rename", "replace")}
    syncs = {name: getattr(os, name) for name in ("fsync", "fdatasync")}

    def full(path: str | os.PathLike[str], directory: int | None) -> str:
        base = os.readlink(f"/proc/self/fd/{directory}") if directory is not None else os.getcwd()  # noqa: PTH109, PTH115
        return os.path.normpath(Path(base) / os.fspath(path))

    def made(path: str | os.PathLike[str], mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        real["mkdir"](path, mode, dir_fd=dir_fd)
        if disk.holds(where := full(path, dir_fd)):
            disk.node(where)

    def gone(name: str) -> Callable[..., None]:
        def remove(path: str | os.PathLike[str], *, dir_fd: int | None = None) -> None:
            where = full(path, dir_fd)
            real[name](path, dir_fd=dir_fd)
            if disk.holds(where):
                disk.removed(where)

        return remove

    def moved(name: str) -> Callable[..., None]:
        def rename(
            old: str | os.PathLike[str],
            new: str | os.PathLike[str],
            *,
            src_dir_fd: int | None = None,
            dst_dir_fd: int | None = None,
        ) -> None:
            source, target = full(old, src_dir_fd), full(new, dst_dir_fd)
            if disk.holds(source):
                disk.note_content(source)
            real[name](old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            if disk.holds(source):
                disk.renamed(source, target)

        return rename

    def synced(name: str) -> Callable[[int], None]:
        def sync(handle: int) -> None:
            number = handle if isinstance(handle, int) else handle.fileno()
            where = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115
            if not disk.holds(where):
                syncs[name](handle)
                return
            if not Path(where).is_dir():
                disk.note_content(where)
            else:
                for entry in sorted(Path(where).iterdir()):
                    if entry.is_file():
                        disk.note_content(str(entry))
            node = disk.node(where)
            before = len(disk.events)
            syncs[name](handle)
            disk.synced(node, before)

        return sync

    try:
        os.mkdir = made  # type: ignore[assignment]
        for name in ("rmdir", "unlink", "remove"):
            setattr(os, name, gone(name))
        for name in ("rename", "replace"):
            setattr(os, name, moved(name))
        for name in syncs:
            setattr(os, name, synced(name))
        yield
    finally:
        for name, function in {**real, **syncs}.items():
            setattr(os, name, function)


# --- Power cuts ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Stored:
    """What of a node is certainly on disk, and what may be."""

    content: bytearray = field(default_factory=bytearray)
    names: dict[str, Node] = field(default_factory=dict)
    pending: list[tuple[int, Write | Truncate | Entry]] = field(default_factory=list)

    def settle(self, before: int) -> None:
        for place, event in self.pending:
            if place >= before:
                break
            self._apply(event)
        self.pending = [(place, event) for place, event in self.pending if place >= before]

    def _apply(self, event: Write | Truncate | Entry) -> None:
        if isinstance(event, Entry):
            _rename(self.names, event)
        elif isinstance(event, Truncate):
            resize(self.content, event.size)
        else:
            put(self.content, event.offset, event.data)


class Replay:
    """The disk event by event; ``cut`` writes what may be left of it if the power fails now."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._stored: dict[Node, _Stored] = {}
        self.position = 0

    def advance(self) -> Event:
        event = self._disk.events[self.position]
        if isinstance(event, Sync):
            self._of(event.node).settle(event.covers)
        elif not isinstance(event, Mark):
            self._of(event.node).pending.append((self.position, event))
        self.position += 1
        return event

    def cut(self, target: Path, chance: random.Random) -> None:
        """Create the directory ``target`` with what is left."""
        kept_writes, kept_names = chance.choice((0.0, 0.1, 0.5, 0.9, 1.0)), chance.choice((0.0, 0.5, 1.0))
        self._directory(self._disk.root, target, chance, kept_writes, kept_names)

    def _of(self, node: Node) -> _Stored:
        return self._stored.setdefault(node, _Stored())

    def _directory(
        self, node: Node, target: Path, chance: random.Random, kept_writes: float, kept_names: float
    ) -> None:
        target.mkdir(mode=0o700)
        stored = self._of(node)
        names = dict(stored.names)
        for _, event in stored.pending:
            assert isinstance(event, Entry)
            if chance.random() < kept_names:
                _rename(names, event)
        for name, child in names.items():
            if child.entries is not None:
                self._directory(child, target / name, chance, kept_writes, kept_names)
            else:
                (target / name).write_bytes(self._content(child, chance, kept_writes))

    def _content(self, node: Node, chance: random.Random, kept: float) -> bytes:
        stored = self._of(node)
        content = bytearray(stored.content)
        for _, event in stored.pending:
            if isinstance(event, Truncate):
                if chance.random() < kept:
                    resize(content, event.size)
                continue
            assert isinstance(event, Write)
            end = event.offset + len(event.data)
            start = event.offset
            while start < end:
                stop = min(end, (start // SECTOR + 1) * SECTOR)
                if chance.random() < kept:
                    put(content, start, event.data[start - event.offset : stop - event.offset])
                elif start >= len(content) and chance.random() < kept / 2:
                    # The file is already longer, and the sector has its old content.
                    put(content, start, chance.randbytes(stop - start))
                start = stop
        if len(content) > len(stored.content) and chance.random() < (1 - kept) / 2:
            del content[len(stored.content) :]
        return bytes(content)


def _rename(names: dict[str, Node], event: Entry) -> None:
    for name, node in event.names.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def resize(content: bytearray, size: int) -> None:
    """Truncate a file, or extend it with zeros."""
    del content[size:]
    content.extend(bytes(size - len(content)))


def put(content: bytearray, offset: int, data: bytes) -> None:
    """Write into a file, after zeros if it was shorter."""
    if len(content) < offset:
        resize(content, offset)
    content[offset : offset + len(data)] = data

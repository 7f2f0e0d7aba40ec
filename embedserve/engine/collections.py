"""Create, name, check, back up and delete collections."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress

from embedserve.engine import compatibility
from embedserve.engine.core import Core
from embedserve.engine.inputs import BackupPart, check_target_recall
from embedserve.errors import AlreadyExists, CollectionNotFound, InvalidInput
from embedserve.types import (
    DEFAULT_TARGET_RECALL,
    CheckProgress,
    CheckReport,
    CollectionIdentity,
    CollectionInfo,
    Keep,
    check_metadata_key,
)

_CHUNK_BYTES = 1 << 20
_PROGRESS_S = 0.2
"""How often a check reports its progress."""


class Collections:
    """The collections of an engine. A name may be an alias except where one is created or deleted."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def create(
        self,
        name: str,
        *,
        keep: Keep = Keep.THUMBNAILS,
        external: bool = False,
        dimension: int = 0,
        index: str = "auto",
        target_recall: float = DEFAULT_TARGET_RECALL,
        filter_keys: Sequence[str] = (),
        encoder_fingerprint: str = "",
        encoder_name: str = "",
    ) -> CollectionInfo:
        """Create an empty collection, bound to the engine's encoder, to the named one or, if external, to none.

        Raises:
            InvalidInput: an argument is not allowed.
            AlreadyExists: the name is taken.
        """
        identity = compatibility.new_identity(
            name,
            self._core.embedder.encoder,
            keep=keep,
            external=external,
            dimension=dimension,
            encoder_fingerprint=encoder_fingerprint,
            encoder_name=encoder_name,
        )
        check_target_recall(target_recall)
        for key in filter_keys:
            check_metadata_key(key)
        return await self._core.in_store(
            lambda store: store.create_collection(
                name,
                fingerprint=identity.fingerprint,
                encoder_name=identity.encoder_name,
                dimension=identity.dimension,
                keep=keep,
                index=index,
                target_recall=target_recall,
                filter_keys=filter_keys,
            )
        )

    def identity(self, name: str) -> CollectionIdentity:
        """The identity of a collection; never waits.

        Raises:
            CollectionNotFound: no collection or alias has the name.
        """
        return self._core.identity(name)

    async def get(self, name: str) -> CollectionInfo:
        """What a collection is and holds.

        Raises:
            CollectionNotFound: no collection or alias has the name.
        """
        return await self._core.in_store(lambda store: store.get_collection(name))

    async def list_all(self) -> list[CollectionInfo]:
        """All collections, by name."""
        return await self._core.read(lambda store, wanted: store.list_collections(wanted), self._core.short)

    async def delete(self, name: str) -> None:
        """Delete a collection, not an alias, with all its items."""
        await self._core.in_store(lambda store: store.delete_collection(name))

    async def set_alias(self, alias: str, collection: str) -> None:
        """Point an alias to a collection or, if that is empty, delete the alias."""
        await self._core.in_store(lambda store: store.set_alias(alias, collection))

    def check(self, name: str) -> AsyncGenerator[CheckProgress | CheckReport]:
        """Compare everything that is stored more than once; yields the progress and, finally, the report.

        Closing the iterator ends the check.

        Raises:
            CollectionNotFound: no collection or alias has the name.
        """
        store = self._core.store
        store.identity(name)  # before it waits for a thread

        def job(give: Callable[[CheckProgress | CheckReport], None], check: Callable[[], None]) -> None:
            last, given_at = CheckProgress("", 0, 0), 0.0

            def on_progress(progress: CheckProgress) -> None:
                nonlocal last, given_at
                check()
                now = time.monotonic()
                if progress.stage != last.stage or now - given_at > _PROGRESS_S:
                    last, given_at = progress, now
                    give(progress)

            give(store.check_collection(name, on_progress))

        return self._core.jobs.produce(job)

    def backup(self, name: str) -> AsyncGenerator[BackupPart]:
        """The collection as it is at one moment, in pieces of at most 1 MiB. Closing the iterator ends the backup.

        Raises:
            CollectionNotFound: no collection or alias has the name.
        """
        store = self._core.store
        store.identity(name)  # before it waits for a thread

        def job(give: Callable[[BackupPart], None], check: Callable[[], None]) -> None:
            digest = hashlib.sha256()
            with store.backup_collection(name, check) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    give(BackupPart(chunk))
            give(BackupPart(b"", digest.digest()))

        return self._core.jobs.produce(job)

    async def restore(self, name: str, parts: AsyncIterator[BackupPart]) -> CollectionInfo:
        """Create a collection with this new name from a backup, which may arrive in pieces of any size.

        Cancelling this ends the restore; if that comes too late, it returns the collection that was created.

        Raises:
            Overloaded: too many checks, backups and restores wait already.
            InvalidInput: the name is not allowed, or the bytes are not a backup, or are incomplete or damaged.
            AlreadyExists: the name is taken.
            DiskFull: nothing was created.
        """
        store = self._core.store
        with suppress(CollectionNotFound):  # the store looks again when everything has arrived
            store.identity(name)
            raise AlreadyExists(f"there is already a collection or an alias {name!r}")
        return await self._core.jobs.consume(
            lambda taken, check: store.restore_collection(name, _verified(taken), check), parts
        )


def _verified(parts: Iterator[BackupPart]) -> Iterator[bytes]:
    """The bytes of a backup; they end normally only if all of them arrived as they were sent.

    Raises:
        InvalidInput: bytes are missing or differ.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.chunk)
        if part.chunk:
            yield part.chunk
        if part.sha256:
            if part.sha256 != digest.digest():
                raise InvalidInput(
                    f"the backup has the sha256 {digest.hexdigest()}, and {part.sha256.hex()} was sent with it",
                    hint="it was damaged in transit or on disk; send it again, or use another one",
                )
            return
    raise InvalidInput("the backup is incomplete: its last message, with the sha256, is missing", hint="send it again")

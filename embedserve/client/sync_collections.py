# Generated from aio_collections.py by scripts/sync_client.py; do not edit.
"""The part of ``Client`` that is about collections and their items."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path

from embedserve.atomic_write import atomic_write
from embedserve.changes import MetadataChange
from embedserve.client import answers, arguments, bulk, item_changes, long_calls, messages
from embedserve.client.sync_calls import Calls
from embedserve.client.values import AddResult, ItemId, ItemInput
from embedserve.errors import InvalidInput
from embedserve.types import CheckProgress, CheckReport, CollectionInfo, Filter, Item, Keep
from embedserve.v1 import collection_service_pb2 as collection_pb


class Collections:
    """The methods of ``Client`` about collections and their items."""

    _calls: Calls

    # --- Items ---

    def add(
        self, collection: str, items: Iterable[ItemInput], *, errors: str = "raise", encoder_fingerprint: str = ""
    ) -> list[AddResult]:
        """Write items, replacing those with the same ids. An item without an error is on the server's disk.

        An item that cannot be used fails alone: all others are written first, and then its error is raised. If an id
        occurs twice, the later item counts. Many items go over a stream, as in ``embed``. If that fails for good, items
        without a result may have been written; adding them again under the same ids does no harm.

        Args:
            collection: name or alias.
            items: taken one by one, so that an iterator may give more than fits in memory.
            errors: "raise" raises ``ItemsFailed`` if an item was not written, once all others are; it has all results.
                "keep" returns the results, in which the errors are.
            encoder_fingerprint: of the encoder that made the vectors of items that have one; required for them unless
                the collection is external.

        Returns:
            For each item, in order, its id and, if it was not written, the error that says why.

        Raises:
            ItemsFailed: items were not written, and ``errors`` is "raise".
            CollectionNotFound: no collection or alias has the name.
            EncoderMismatch: the collection is bound to another encoder.
            FailedPrecondition: there is an image, and the collection is external. This and the mismatch end the call,
                also with "keep": items before may have been written, and ``add_each`` has given their results.
            DiskFull: the server's disk is full.
        """
        is_raised = arguments.errors(errors)
        results = self._add(*arguments.additions(collection, items, encoder_fingerprint))
        try:
            added = list(results)
        finally:
            results.close()
        if is_raised:
            bulk.raise_failures(added)
        return added

    def add_each(
        self, collection: str, items: Iterable[ItemInput], *, encoder_fingerprint: str = ""
    ) -> Iterator[AddResult]:
        """Like ``add``, giving each result as soon as it is known, with the error of an item that was not written."""
        return self._add(*arguments.additions(collection, items, encoder_fingerprint))

    def _add(self, collection: str, items: Iterable[ItemInput], encoder_fingerprint: str) -> Generator[AddResult]:
        chunks = bulk.add_chunks(collection, items, self._calls.limits(), encoder_fingerprint)
        stub = self._calls.stubs.collections
        answers = self._calls.bulk(bulk.ADD, stub.Upsert, stub.UpsertStream, chunks)
        try:
            for chunk, response in answers:
                yield from bulk.add_results(chunk, response)
        finally:
            answers.close()

    def get_items(
        self,
        collection: str,
        ids: Iterable[ItemId],
        *,
        include_metadata: bool = True,
        include_vectors: bool = False,
        include_media: bool = False,
    ) -> list[Item | None]:
        """Read items by id, in as many calls as their sizes need.

        Returns:
            For each id, in order, the item, or None if the collection has no such item.

        Raises:
            CollectionNotFound: no collection or alias has the name.
            InvalidInput: an id is empty or too long.
        """
        collection = arguments.text("collection", collection, may_be_empty=False)
        wanted = arguments.ids(ids)
        parts = {
            "include_metadata": arguments.flag("include_metadata", include_metadata),
            "include_vectors": arguments.flag("include_vectors", include_vectors),
            "include_media": arguments.flag("include_media", include_media),
        }
        chunks = messages.get_items_chunks(collection, wanted, self._calls.limits(), **parts)
        method, splitter = self._calls.stubs.collections.GetItems, messages.get_items_splitter()
        return self._calls.in_order(method, chunks, messages.get_items_results, splitter)

    def delete_items(
        self, collection: str, ids: Iterable[ItemId] | None = None, *, filter: Filter | None = None
    ) -> int:
        """Remove items by id, or all that match a filter.

        By filter, items are removed a thousand at a time, and all within one call, so that ``timeout_s`` limits the
        whole of it. A call that ends early may have removed some of them; the same call again removes the rest. Of
        items that are written meanwhile and match, some may be removed.

        Args:
            collection: name or alias.
            ids: an id without an item is no error.
            filter: in place of ``ids``; with at least one condition on a key.

        Returns:
            How many items were removed; by filter, where a lost call had to be repeated, by the last one.

        Raises:
            CollectionNotFound: no collection or alias has the name.
            InvalidInput: neither or both of ``ids`` and ``filter`` are given, or the filter has no condition.
            FailedPrecondition: the server is too old to delete by filter; nothing was removed.
        """
        collection = arguments.text("collection", collection, may_be_empty=False)
        condition = arguments.condition(filter)
        if (ids is None) == (condition is None):
            raise InvalidInput(
                f"delete_items has {'neither ids nor' if ids is None else 'both ids and'} a filter",
                hint="give one of the two: ids=['1', '2'] or filter=Eq('label', 'red')",
            )
        method = self._calls.stubs.collections.DeleteItems
        if condition is not None:
            request = item_changes.delete_matching_request(collection, condition)
            return item_changes.deleted_matching(self._calls.answer(method, request))
        chunks = messages.delete_items_chunks(
            collection, arguments.ids(() if ids is None else ids), self._calls.limits()
        )
        return sum(self._calls.in_order(method, chunks, messages.deleted_counts))

    def count_items(self, collection: str, filter: Filter | None = None) -> int:
        """How many items a collection has, or match a filter.

        Raises:
            CollectionNotFound: no collection or alias has the name.
        """
        collection = arguments.text("collection", collection, may_be_empty=False)
        request = item_changes.count_request(collection, arguments.condition(filter))
        return item_changes.counted(self._calls.answer(self._calls.stubs.collections.CountItems, request))

    def update_metadata(
        self, collection: str, changes: MetadataChange | Iterable[MetadataChange], *, errors: str = "raise"
    ) -> list[AddResult]:
        """Change the metadata of items; their vectors and images stay as they are, and are not sent.

            client.update_metadata("photos", MetadataChange("shoes/12.jpg", set={"price": 30}, remove=["new"]))

        Many changes go in several calls, each of them one transaction. If an id occurs twice in one of them, its
        changes are made in order.

        Args:
            collection: name or alias.
            changes: one or several.
            errors: "raise" raises ``ItemsFailed`` if an item was not changed, once all others are; it has all results.
                "keep" returns the results, in which the errors are.

        Returns:
            For each change, in order, the item's id and, if it was not changed, the error that says why: ItemNotFound
            where the collection has no such item.

        Raises:
            CollectionNotFound: no collection or alias has the name.
            ItemsFailed: items were not changed, and ``errors`` is "raise".
            DiskFull: the server's disk is full.
        """
        collection = arguments.text("collection", collection, may_be_empty=False)
        is_raised = arguments.errors(errors)
        several = [changes] if isinstance(changes, MetadataChange) else arguments.several("changes", changes)
        chunks = item_changes.update_chunks(collection, several, self._calls.limits())
        method = self._calls.stubs.collections.UpdateMetadata
        results = self._calls.in_order(method, chunks, item_changes.update_results)
        if is_raised:
            bulk.raise_failures(results, "changed")
        return results

    def list_items(
        self,
        collection: str,
        *,
        filter: Filter | None = None,
        include_metadata: bool = True,
        include_vectors: bool = False,
        page_size: int = 100,
    ) -> Iterator[Item]:
        """All items, or those that match a filter, in the order of their ids. Pages are read as they are needed.

        An item that exists all the time is given exactly once, even while others are written.

        Raises:
            CollectionNotFound: no collection or alias has the name.
        """
        request = messages.list_items_request(
            arguments.text("collection", collection, may_be_empty=False),
            filter=arguments.condition(filter),
            include_metadata=arguments.flag("include_metadata", include_metadata),
            include_vectors=arguments.flag("include_vectors", include_vectors),
            page_size=arguments.whole("page_size", page_size, least=1),
        )
        return self._list_items(request, answers.Pages(include_vectors=include_vectors))

    def _list_items(self, request: collection_pb.ListItemsRequest | None, pages: answers.Pages) -> Generator[Item]:
        while request is not None:
            response = self._calls.answer(self._calls.stubs.collections.ListItems, request)
            yield from pages.items(response)
            request = messages.next_page_request(request, response)

    # --- Collections ---

    def create_collection(
        self,
        name: str,
        *,
        keep: Keep | str = Keep.THUMBNAILS,
        external: bool = False,
        dimension: int = 0,
        index: str = "auto",
        target_recall: float | None = None,
        filter_keys: Iterable[str] = (),
        encoder_fingerprint: str = "",
        encoder_name: str = "",
    ) -> CollectionInfo:
        """Make an empty collection. It is bound to the server's encoder for good, unless the arguments say otherwise.

        Args:
            name: 1–64 letters, digits, ".", "_" and "-", starting with a letter or digit.
            keep: what to keep of images: "none", "thumbnails" or "originals".
            external: bound to no encoder; the caller brings all vectors, and images are refused.
            dimension: numbers in a vector; required if external or with ``encoder_fingerprint``.
            index: what answers searches: "auto", "exact", "hnsw" or "ivf", with parameters as in "hnsw:m=32".
            target_recall: recall@10 that approximate search is tuned to, in (0, 1]; None: 0.95.
            filter_keys: metadata keys to keep an index of, so that filters on them need not read all items.
            encoder_fingerprint: of an encoder to bind to that the server does not run; items and queries are then
                vectors with this fingerprint.
            encoder_name: name of that encoder, for display.

        Raises:
            AlreadyExists: a collection or an alias has the name.
            InvalidInput: an argument is not allowed.
        """
        request = messages.create_collection_request(
            arguments.text("name", name, may_be_empty=False),
            keep=arguments.keep(keep),
            external=arguments.flag("external", external),
            dimension=arguments.whole("dimension", dimension, least=0),
            index=arguments.text("index", index),
            target_recall=None if target_recall is None else arguments.number("target_recall", target_recall),
            filter_keys=arguments.texts("filter_keys", filter_keys),
            encoder_fingerprint=arguments.text("encoder_fingerprint", encoder_fingerprint),
            encoder_name=arguments.text("encoder_name", encoder_name),
        )
        # Not retried: if the first answer was lost, the second would say that the collection exists.
        response = self._calls.answer(self._calls.stubs.collections.CreateCollection, request, is_retried=False)
        return answers.collection(response)

    def get_collection(self, name: str) -> CollectionInfo:
        """What a collection is and holds.

        Raises:
            CollectionNotFound: no collection or alias has the name.
        """
        name = arguments.text("name", name, may_be_empty=False)
        request = messages.message(collection_pb.GetCollectionRequest, name=name)
        response = self._calls.answer(self._calls.stubs.collections.GetCollection, request)
        return answers.collection(response)

    def list_collections(self) -> list[CollectionInfo]:
        """All collections, by name."""
        request = collection_pb.ListCollectionsRequest()
        response = self._calls.answer(self._calls.stubs.collections.ListCollections, request)
        return [answers.collection_of(collection) for collection in response.collections]

    def delete_collection(self, name: str) -> None:
        """Remove a collection with all its items, and the aliases that point to it.

        Raises:
            CollectionNotFound: no collection has the name; an alias is not accepted.
        """
        name = arguments.text("name", name, may_be_empty=False)
        request = messages.message(collection_pb.DeleteCollectionRequest, name=name)
        # Not retried: after a lost answer the collection would be gone, or another one have its name.
        self._calls.answer(self._calls.stubs.collections.DeleteCollection, request, is_retried=False)

    def set_alias(self, alias: str, collection: str) -> None:
        """Point an alias to a collection, at once for every reader; an empty ``collection`` removes it.

        Raises:
            CollectionNotFound: there is no such collection, or no such alias to remove.
            AlreadyExists: a collection has the alias as its name.
            InvalidInput: the alias is not allowed as a name.
        """
        alias = arguments.text("alias", alias, may_be_empty=False)
        collection = arguments.text("collection", collection)
        request = messages.message(collection_pb.SetAliasRequest, alias=alias, collection=collection)
        self._calls.answer(self._calls.stubs.collections.SetAlias, request)

    def check_collection(self, name: str, on_progress: Callable[[CheckProgress], None] | None = None) -> CheckReport:
        """Have the server compare everything that the collection stores redundantly, and measure recall.

        The check reads every item, and the collection can be used meanwhile. There is no limit on the total time;
        ``timeout_s``, but at least 30 seconds, limits the time in which the server sends nothing.

        Args:
            name: name or alias.
            on_progress: called with the progress of the check, in the caller's thread.

        Raises:
            CollectionNotFound: no collection or alias has the name.
        """
        name = arguments.text("name", name, may_be_empty=False)
        reader = long_calls.CheckReader(arguments.callback("on_progress", on_progress))
        request = messages.message(collection_pb.CheckCollectionRequest, name=name)
        with closing(self._calls.responses(self._calls.stubs.collections.CheckCollection, request)) as responses:
            for response in responses:
                reader.read(response)
        return reader.report()

    def backup_collection(
        self,
        name: str,
        path: str | Path,
        *,
        overwrite: bool = False,
        on_progress: Callable[[int], None] | None = None,
    ) -> str:
        """Write the collection as it is at this moment into one file, and return the file's sha256.

        The file appears once it is complete and on disk. ``timeout_s``, but at least 30 seconds, limits the time in
        which the server sends nothing.

        Args:
            name: name or alias.
            path: of the file.
            overwrite: replace a file that exists.
            on_progress: called in the caller's thread with the number of bytes received; 0 while the call waits for its
                turn and the server makes its copy.

        Raises:
            CollectionNotFound: no collection or alias has the name.
            DataError: the file exists, or cannot be written.
            DiskFull: the server has no room for the copy.
        """
        name, file_path = arguments.text("name", name, may_be_empty=False), arguments.path("path", path)
        overwrite = arguments.flag("overwrite", overwrite)
        on_progress = arguments.callback("on_progress", on_progress)
        request = messages.message(collection_pb.BackupCollectionRequest, name=name)
        method = self._calls.stubs.collections.BackupCollection
        with atomic_write(file_path, overwrite=overwrite) as file:
            writer = long_calls.BackupWriter(file, on_progress)
            with closing(self._calls.responses(method, request)) as responses:
                for response in responses:
                    writer.write(response)
            return writer.sha256()

    def restore_collection(
        self, name: str, path: str | Path, *, on_progress: Callable[[int | None], None] | None = None
    ) -> CollectionInfo:
        """Make a collection from a backup. It appears once all of it has been received, checked and written to disk.

        ``timeout_s`` limits the time in which the server takes nothing of the file once it has begun; when it has all
        of the file, there is no limit.

        Args:
            name: of the new collection.
            path: of the backup.
            on_progress: called now and then in the caller's thread with the number of bytes that the server has
                taken; None while the call waits for its turn.

        Raises:
            AlreadyExists: a collection or an alias has the name.
            DataError: the file cannot be read.
            InvalidInput: the name is not allowed, or the file is not a backup, incomplete or damaged.
            DiskFull: the server has no room.
        """
        name, file_path = arguments.text("name", name, may_be_empty=False), arguments.path("path", path)
        on_progress = arguments.callback("on_progress", on_progress)
        long_calls.check_readable(file_path)
        sender = long_calls.RestoreSender(name, file_path, self._calls.target, self._calls.timeout_s, on_progress)
        return self._calls.restore(sender)

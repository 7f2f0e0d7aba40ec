"""The client that blocks. Each method builds requests, has them answered and reads the responses."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from embedserve import wire
from embedserve.atomic_write import atomic_write
from embedserve.client import backups, bulk, calls, messages, streams
from embedserve.client.access import access
from embedserve.client.parts import Part
from embedserve.client.values import (
    AddResult,
    Embeddings,
    EncoderInfo,
    EncoderRef,
    ImageInput,
    ItemInput,
    Query,
    ServerInfo,
)
from embedserve.errors import EmbedserveError, FailedPrecondition, Unavailable
from embedserve.types import CheckProgress, CheckReport, CollectionInfo, Filter, Hit, Item, Keep, Limits, SearchOptions
from embedserve.v1 import admin_service_pb2 as admin_pb
from embedserve.v1 import collection_service_pb2 as collection_pb
from embedserve.v1 import embedding_service_pb2 as embedding_pb
from embedserve.v1.admin_service_pb2_grpc import AdminServiceStub
from embedserve.v1.collection_service_pb2_grpc import CollectionServiceStub
from embedserve.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from embedserve.v1.search_service_pb2_grpc import SearchServiceStub

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)
CallT = TypeVar("CallT", bound=Message)
AnswerT = TypeVar("AnswerT", bound=Message)

_READY_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class _Sent(Generic[RequestT, ResponseT]):
    """A call under way."""

    request: RequestT
    future: grpc.Future[ResponseT]
    deadline_s: float


class Client:
    """A connection to an embedserve server. May be used from several threads at once.

    Every method raises ``Unavailable`` where no server answers and ``DeadlineExceeded`` where it takes too long. A
    busy or restarting server is asked again within ``timeout_s``, except to make a collection.

    Args:
        target: HOST:PORT of the server; the port may be left out if it is 50051.
        timeout_s: how long one call to the server may take, with its repetitions. ``embed`` and ``add`` of many take as
            long as they take, but end where no answer comes for so long.
        token: what the server knows this client by; sent with every call.
        tls: encrypt, and believe the CAs that this machine believes.
        ca: encrypt, and believe only the CAs in this PEM file.
        client_cert: PEM file with the certificate that a server with mutual TLS asks for; ``client_key`` with its key.
        client_key: PEM file with the private key of ``client_cert``.
        allow_plain_token: send the token without TLS to another machine too, where the way there is safe.
        credentials: TLS as gRPC makes it, instead of the four above; None for none of one's own.

    Raises:
        InvalidInput: arguments contradict each other, or the token would travel readable to another machine.
        SetupError: a file with certificates cannot be used.
    """

    def __init__(
        self,
        target: str = "localhost:50051",
        *,
        timeout_s: float = 60,
        token: str = "",
        tls: bool = False,
        ca: str | Path | None = None,
        client_cert: str | Path | None = None,
        client_key: str | Path | None = None,
        allow_plain_token: bool = False,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._target = calls.address(target)
        self._timeout_s = timeout_s
        self._channel: grpc.Channel = access(
            self._target,
            token=token,
            tls=tls,
            ca=ca,
            client_cert=client_cert,
            client_key=client_key,
            allow_plain_token=allow_plain_token,
            credentials=credentials,
        ).open(grpc)
        self._embedding = EmbeddingServiceStub(self._channel)
        self._search = SearchServiceStub(self._channel)
        self._collections = CollectionServiceStub(self._channel)
        self._admin = AdminServiceStub(self._channel)
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)  # its stubs name no calls
        self._known_limits: Limits | None = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls under way are cancelled. Closing twice does nothing."""
        self._closed = True
        self._channel.close()

    # --- Embeddings ---

    def embed(
        self, images: Iterable[ImageInput], *, errors: str = "raise", encoder_fingerprint: str = ""
    ) -> Embeddings:
        """The embeddings of any number of images.

        What fits one message (16 images, 1 MiB) is one call. More goes over a stream, which is opened again where it
        breaks; ``timeout_s`` then bounds the time without an answer, not the whole.

        Args:
            images: encoded bytes or paths; taken one by one, so that an iterator may give more than fits in memory.
            errors: "raise" raises the first image's error; "keep" puts NaN into its row and its error into ``errors``.
            encoder_fingerprint: refuse unless the server's encoder has it; empty: any encoder.

        Returns:
            float32 [N, D] in the order of the images, with errors and encoder.

        Raises:
            ImageError: an image cannot be used; the message says which.
            DataError: a file cannot be read.
            EncoderMismatch: the encoder is not the one that was asked for, or was replaced meanwhile.
        """
        collector = bulk.Collector(images, errors)
        reader = bulk.EmbedReader()
        for result in self._embed(collector.images(), encoder_fingerprint, reader):
            collector.add(result)
        return collector.embeddings(reader.encoder or self.server_info().encoder)

    def embed_each(
        self, images: Iterable[ImageInput], *, encoder_fingerprint: str = ""
    ) -> Iterator[NDArray[np.float32] | EmbedserveError]:
        """The embeddings of any number of images, one by one, for more than fits in memory.

        Images are taken in the caller's thread, a bounded number ahead of the results that have been taken. Closing the
        iterator cancels what is under way.

        Yields:
            For each image, in order, its vector (float32 [D], unit norm) or the error that says why there is none.

        Raises:
            EncoderMismatch: as ``embed``.
        """
        return self._embed(images, encoder_fingerprint, bulk.EmbedReader())

    def _embed(
        self, images: Iterable[ImageInput], encoder_fingerprint: str, reader: bulk.EmbedReader
    ) -> Iterator[NDArray[np.float32] | EmbedserveError]:
        parts = bulk.embed_parts(images, self._limits(), encoder_fingerprint)
        for part, response in self._bulk(bulk.EMBED, self._embedding.Embed, self._embedding.EmbedStream, parts):
            yield from reader.read(part, response)

    def encoder(self) -> EncoderInfo:
        """The encoder that the server runs."""
        return messages.encoder_info(self._answer(self._embedding.GetEncoder, embedding_pb.GetEncoderRequest()))

    # --- Search ---

    def search(
        self,
        collection: str,
        *,
        image: ImageInput | None = None,
        vector: ArrayLike | None = None,
        id: str | None = None,
        k: int = 10,
        min_score: float | None = None,
        filter: Filter | None = None,
        group_by: str = "",
        exact: bool = False,
        ef: int = 0,
        nprobe: int = 0,
        target_recall: float | None = None,
        include_metadata: bool = True,
        include_vectors: bool = False,
        encoder_fingerprint: str = "",
    ) -> list[Hit]:
        """The items closest to an image, a vector or another item; exactly one of these is given.

        Args:
            collection: name or alias.
            image: encoded bytes or a path.
            vector: D numbers; ``encoder_fingerprint`` says which encoder made them.
            id: an item of the collection; it is not among its own hits.
            k: how many hits at most, from 1.
            min_score: only hits with at least this cosine, in [−1, 1].
            filter: only items whose metadata fits.
            group_by: metadata key; at most one hit, the closest, for each of its values.
            exact: compare with every item, bypassing approximate structures.
            ef: candidates that HNSW keeps while it searches, to 65536; 0: what the target recall needs. At most one of
                ``exact``, ``ef``, ``nprobe`` and ``target_recall`` is given.
            nprobe: lists that IVF looks through, to 65536; 0: what the target recall needs.
            target_recall: recall@10 to search for, in (0, 1]; None: what the collection is tuned to.
            include_metadata: return the metadata of each hit.
            include_vectors: return the vector of each hit, float32 [D].
            encoder_fingerprint: of the encoder that made ``vector``; needed unless the collection is external.

        Returns:
            At most k hits, closest first.

        Raises:
            InvalidInput: not exactly one query is given, or an option is out of range.
            CollectionNotFound: no collection or alias has the name.
            ItemNotFound: no item has the id.
            EncoderMismatch: the collection is bound to another encoder.
            ImageError: the image cannot be used.
        """
        (result,) = self.search_many(
            collection,
            [Query(image=image, vector=vector, id=id)],
            k=k,
            min_score=min_score,
            filter=filter,
            group_by=group_by,
            exact=exact,
            ef=ef,
            nprobe=nprobe,
            target_recall=target_recall,
            include_metadata=include_metadata,
            include_vectors=include_vectors,
            encoder_fingerprint=encoder_fingerprint,
        )
        if isinstance(result, EmbedserveError):
            raise result
        return result

    def search_many(
        self,
        collection: str,
        queries: Iterable[Query],
        *,
        k: int = 10,
        min_score: float | None = None,
        filter: Filter | None = None,
        group_by: str = "",
        exact: bool = False,
        ef: int = 0,
        nprobe: int = 0,
        target_recall: float | None = None,
        include_metadata: bool = True,
        include_vectors: bool = False,
        encoder_fingerprint: str = "",
    ) -> list[list[Hit] | EmbedserveError]:
        """The answers to any number of queries; the options are those of ``search``.

        Returns:
            For each query, in order, its hits or the error that says why it could not be answered.

        Raises:
            InvalidInput, CollectionNotFound, EncoderMismatch: as ``search``, for all queries together.
        """
        options = SearchOptions(
            k=k,
            min_score=min_score,
            filter=filter,
            group_by=group_by,
            exact=exact,
            ef=ef,
            nprobe=nprobe,
            target_recall=target_recall,
            include_metadata=include_metadata,
            include_vectors=include_vectors,
        )
        parts = messages.search_parts(collection, queries, options, self._limits(), encoder_fingerprint)
        results: list[list[Hit] | EmbedserveError] = []
        for part, response in self._in_order(self._search.Search, parts):
            results += messages.search_results(part, response)
        return results

    # --- Items ---

    def add(self, collection: str, items: Iterable[ItemInput], *, encoder_fingerprint: str = "") -> list[AddResult]:
        """Write items, replacing those with the same ids. What is returned as written is on the server's disk.

        An item that cannot be used fails alone; of an id that comes twice, the later item counts. Many items go over a
        stream, as in ``embed``. Where that fails for good, items without a result may have been written; adding them
        again under the same ids does no harm.

        Args:
            collection: name or alias.
            items: taken one by one, so that an iterator may give more than fits in memory.
            encoder_fingerprint: for items that are vectors: of the encoder that made them; needed unless the
                collection is external.

        Returns:
            For each item, in order, its id and, if it was not written, why.

        Raises:
            CollectionNotFound: no collection or alias has the name.
            EncoderMismatch: the collection is bound to another encoder.
            DiskFull: the server's disk is full.
        """
        return list(self.add_each(collection, items, encoder_fingerprint=encoder_fingerprint))

    def add_each(
        self, collection: str, items: Iterable[ItemInput], *, encoder_fingerprint: str = ""
    ) -> Iterator[AddResult]:
        """Like ``add``, giving each result as soon as it is known."""
        parts = bulk.add_parts(collection, items, self._limits(), encoder_fingerprint)
        for part, response in self._bulk(bulk.ADD, self._collections.Upsert, self._collections.UpsertStream, parts):
            yield from bulk.add_results(part, response)

    def get_items(
        self,
        collection: str,
        ids: Sequence[str],
        *,
        include_metadata: bool = True,
        include_vectors: bool = False,
        include_media: bool = False,
    ) -> list[Item | None]:
        """Read items by id.

        Returns:
            For each id, in order, the item, or None if the collection has none with it.

        Raises:
            CollectionNotFound: no collection or alias has the name.
            InvalidInput: an id is empty or too long.
        """
        parts = messages.get_items_parts(
            collection,
            ids,
            self._limits(),
            include_metadata=include_metadata,
            include_vectors=include_vectors,
            include_media=include_media,
        )
        items: list[Item | None] = []
        for part, response in self._in_order(self._collections.GetItems, parts):
            items += messages.get_items_results(part, response)
        return items

    def delete_items(self, collection: str, ids: Sequence[str]) -> int:
        """Remove items by id; an id that is not there is no error.

        Returns:
            How many there were.

        Raises:
            CollectionNotFound: no collection or alias has the name.
        """
        parts = messages.delete_items_parts(collection, ids, self._limits())
        deleted = 0
        for _part, response in self._in_order(self._collections.DeleteItems, parts):
            deleted += response.deleted_count if response is not None else 0
        return deleted

    def list_items(
        self,
        collection: str,
        *,
        filter: Filter | None = None,
        include_metadata: bool = True,
        include_vectors: bool = False,
        page_size: int = 100,
    ) -> Iterator[Item]:
        """All items, or those that fit a filter, in the order of their ids. Pages are read as they are needed.

        An item that is there all the time is given exactly once, even while others are written.

        Raises:
            CollectionNotFound: no collection or alias has the name.
        """
        request: collection_pb.ListItemsRequest | None = messages.list_items_request(
            collection,
            filter=filter,
            include_metadata=include_metadata,
            include_vectors=include_vectors,
            page_size=page_size,
        )
        while request is not None:
            response = self._answer(self._collections.ListItems, request)
            yield from map(wire.item_from_proto, response.items)
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
        filter_keys: Sequence[str] = (),
        encoder_fingerprint: str = "",
        encoder_name: str = "",
    ) -> CollectionInfo:
        """Make an empty collection, bound to an encoder for good: to the server's unless something else is said.

        Args:
            name: 1–64 letters, digits, ".", "_" and "-", starting with a letter or digit.
            keep: what to keep of images: "none", "thumbnails" or "originals".
            external: not bound to any encoder; all vectors are brought, and images are refused.
            dimension: numbers in a vector; needed if external or with ``encoder_fingerprint``.
            index: what answers searches: "auto", "exact", "hnsw" or "ivf", with parameters as in "hnsw:m=32".
            target_recall: recall@10 that approximate search is tuned to, in (0, 1]; None for 0.95.
            filter_keys: metadata keys to keep an index of, so that filters on them need not read all items.
            encoder_fingerprint: binds to an encoder that the server does not run: items and queries are vectors that
                name it.
            encoder_name: name of that encoder, for people.

        Raises:
            AlreadyExists: a collection or an alias has the name.
            InvalidInput: something of this is not allowed.
        """
        request = messages.create_collection_request(
            name,
            keep=keep,
            external=external,
            dimension=dimension,
            index=index,
            target_recall=target_recall,
            filter_keys=filter_keys,
            encoder_fingerprint=encoder_fingerprint,
            encoder_name=encoder_name,
        )
        # Never sent again: if the first answer was lost, the second would say that the collection exists.
        response = self._answer(self._collections.CreateCollection, request, retry=False)
        return wire.collection_from_proto(response.collection)

    def get_collection(self, name: str) -> CollectionInfo:
        """What a collection is and holds.

        Raises:
            CollectionNotFound: no collection or alias has the name.
        """
        request = messages.message(collection_pb.GetCollectionRequest, name=name)
        return wire.collection_from_proto(self._answer(self._collections.GetCollection, request).collection)

    def list_collections(self) -> list[CollectionInfo]:
        """All collections, by name."""
        response = self._answer(self._collections.ListCollections, collection_pb.ListCollectionsRequest())
        return [wire.collection_from_proto(collection) for collection in response.collections]

    def delete_collection(self, name: str) -> None:
        """Remove a collection with all its items, and the aliases that point to it.

        Raises:
            CollectionNotFound: no collection has the name; an alias does not do.
        """
        request = messages.message(collection_pb.DeleteCollectionRequest, name=name)
        # Asked again after a lost answer it would not find the collection, or find another one.
        self._answer(self._collections.DeleteCollection, request, retry=False)

    def set_alias(self, alias: str, collection: str) -> None:
        """Point an alias to a collection, at once for every reader; an empty ``collection`` removes it.

        Raises:
            CollectionNotFound: there is no such collection, or no such alias to remove.
            AlreadyExists: a collection has the alias as its name.
            InvalidInput: the alias is not allowed as a name.
        """
        self._answer(
            self._collections.SetAlias,
            messages.message(collection_pb.SetAliasRequest, alias=alias, collection=collection),
        )

    def check_collection(self, name: str, on_progress: Callable[[CheckProgress], None] | None = None) -> CheckReport:
        """Have the server compare everything that the collection keeps more than once, and measure recall.

        It reads every item, so it takes as long as that takes; the collection is used meanwhile. ``timeout_s``, or
        30 seconds if that is more, bounds the time in which the server says nothing.

        Args:
            name: name or alias.
            on_progress: is told how far the check is, in this thread.

        Raises:
            CollectionNotFound: no collection or alias has the name.
        """
        request = messages.message(collection_pb.CheckCollectionRequest, name=name)
        reader = backups.CheckReader(on_progress)
        for response in self._responses(self._collections.CheckCollection, request):
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
        """Write the collection as it is at this moment into one file; the sha256 of the file.

        The file is there once it is complete and on disk. ``timeout_s``, or 30 seconds if that is more, bounds the time
        in which the server says nothing.

        Args:
            name: name or alias.
            path: of the file.
            overwrite: whether the file may take the place of another one.
            on_progress: is told how many bytes have come, in this thread; 0 while the call waits for its turn and the
                server makes its copy.

        Raises:
            CollectionNotFound: no collection or alias has the name.
            DataError: there is a file already, or it cannot be written.
            DiskFull: the server has no room for the copy.
        """
        request = messages.message(collection_pb.BackupCollectionRequest, name=name)
        with atomic_write(Path(path), overwrite=overwrite) as file:
            reader = backups.BackupReader(file, on_progress)
            for response in self._responses(self._collections.BackupCollection, request):
                reader.read(response)
            return reader.sha256()

    def restore_collection(
        self, name: str, path: str | Path, *, on_progress: Callable[[int | None], None] | None = None
    ) -> CollectionInfo:
        """Make a collection from a backup. It is there once all of it has been received, checked and written to disk.

        ``timeout_s`` bounds the time in which the server takes nothing of the file once the call's turn has come; when
        it has all, it may take its time.

        Args:
            name: of the new collection.
            path: of the backup.
            on_progress: is told now and then, in this thread, how many bytes the server has taken; None while the call
                waits for its turn.

        Raises:
            AlreadyExists: a collection or an alias has the name.
            DataError: the file cannot be read.
            InvalidInput: the name is not allowed, or the file is no backup, is cut, or damaged.
            DiskFull: the server has no room.
        """
        messages.message(collection_pb.RestoreCollectionRequest, name=name)
        backups.check_readable(Path(path))
        self._check_open()
        sender = backups.RestoreSender(name, Path(path), self._target, self._timeout_s, on_progress)
        return sender.send(self._collections.RestoreCollection, lambda: self._closed)

    # --- The server ---

    def server_info(self) -> ServerInfo:
        """The server's version, state and limits."""
        info = messages.server_info(self._answer(self._embedding.GetServerInfo, embedding_pb.GetServerInfoRequest()))
        self._known_limits = info.limits
        return info

    def replace_encoder(self, *, fingerprint: str = "") -> EncoderRef:
        """Have the server read its encoder file again and serve what is in it, without a pause; which encoder that is.

        The server has to ask for tokens, and this client has to have one of the role write.

        Args:
            fingerprint: what the file has to hold; empty for anything.

        Raises:
            EncoderFileError: the file cannot be used; the server goes on with the old encoder.
            EncoderMismatch: the file holds another encoder than ``fingerprint`` says.
            FailedPrecondition: the server has no tokens.
        """
        request = messages.message(admin_pb.ReplaceEncoderRequest, fingerprint=fingerprint)
        return messages.encoder_ref(self._answer(self._admin.ReplaceEncoder, request).current)

    def wait_ready(self, timeout_s: float = 60) -> None:
        """Wait until the server says that it is ready.

        Raises:
            Unavailable: it is not there, or still starting, after ``timeout_s``.
        """
        deadline_s = time.monotonic() + timeout_s
        state = "nothing answers there"
        while (remaining_s := deadline_s - time.monotonic()) > 0:
            self._check_open()
            try:
                response = self._health.Check(health_pb2.HealthCheckRequest(), timeout=remaining_s)
            except grpc.RpcError as error:
                state = calls.not_ready_because(error, self._target, state)
            else:
                if response.status == health_pb2.HealthCheckResponse.SERVING:
                    return
                state = "it is starting or stopping"
            time.sleep(min(_READY_POLL_S, max(0.0, deadline_s - time.monotonic())))
        raise Unavailable(
            f"the server at {self._target} is not ready after {timeout_s:g} s: {state}", hint=calls.START_HINT
        )

    # --- Calls ---

    def _limits(self) -> Limits:
        """The server's limits, asked for once."""
        return self._known_limits or self.server_info().limits

    def _answer(
        self, method: grpc.UnaryUnaryMultiCallable[RequestT, ResponseT], request: RequestT, *, retry: bool = True
    ) -> ResponseT:
        """The response to one request."""
        self._check_open()
        return self._await(method, request, time.monotonic() + self._timeout_s, retry=retry)

    def _bulk(
        self,
        kind: bulk.Bulk[RequestT, ResponseT, CallT],
        method: grpc.UnaryUnaryMultiCallable[CallT, AnswerT],
        stream: grpc.StreamStreamMultiCallable[RequestT, ResponseT],
        parts: Iterator[Part[RequestT]],
    ) -> Iterator[tuple[Part[RequestT], ResponseT | AnswerT | None]]:
        """The responses to the parts of a bulk method: one call if there is but one part, otherwise a stream."""
        first = next(parts, None)
        if first is None:
            return
        if first.is_all:
            yield first, None if first.request is None else self._answer(method, kind.as_call(first.request))
            return
        self._check_open()
        exchange = streams.Exchange(kind.is_answer, self._target, self._timeout_s)
        yield from streams.answers(stream, chain([first], parts), exchange, lambda: self._closed)

    def _in_order(
        self,
        method: grpc.UnaryUnaryMultiCallable[RequestT, ResponseT],
        parts: Iterable[Part[RequestT]],
    ) -> Iterator[tuple[Part[RequestT], ResponseT | None]]:
        """The responses to many requests in their order, a few of them under way at a time."""
        waiting: deque[tuple[Part[RequestT], _Sent[RequestT, ResponseT] | None]] = deque()

        def first() -> tuple[Part[RequestT], ResponseT | None]:
            part, sent = waiting[0]
            response = None if sent is None else self._await(method, sent.request, sent.deadline_s, sent.future)
            waiting.popleft()
            return part, response

        try:
            for part in parts:
                if part.is_all and part.request is not None:
                    # A call that others may follow costs gRPC a thread, 0.35 ms.
                    yield part, self._answer(method, part.request)
                    return
                while len(waiting) >= calls.CALLS_IN_FLIGHT:
                    yield first()
                waiting.append((part, None if part.request is None else self._send(method, part.request)))
            while waiting:
                yield first()
        finally:
            for _part, sent in waiting:
                if sent is not None:
                    sent.future.cancel()

    def _responses(
        self, method: grpc.UnaryStreamMultiCallable[RequestT, ResponseT], request: RequestT
    ) -> Iterator[ResponseT]:
        """The responses to one request, none of them long after the one before; asked again before the first."""
        attempt, deadline_s = 1, time.monotonic() + self._timeout_s
        while True:
            self._check_open()
            call = method(request)
            is_late = threading.Event()

            def give_up(call: Any = call, is_late: threading.Event = is_late) -> None:
                is_late.set()
                call.cancel()

            has_begun = False
            try:
                while True:
                    timer = threading.Timer(backups.silence_s(self._timeout_s), give_up)
                    timer.start()
                    try:
                        response = next(call, None)
                    finally:
                        timer.cancel()
                    if response is None:
                        return
                    has_begun = True
                    yield response
            except grpc.RpcError as error:
                if is_late.is_set():
                    raise backups.silent(self._target, self._timeout_s) from error
                if self._closed:
                    raise Unavailable("the call was cancelled: the client was closed") from error
                failure = calls.failure_of(error, self._target, self._timeout_s)
                pause_s = calls.pause_before_retry_s(failure, attempt, deadline_s - time.monotonic())
                if has_begun or pause_s is None:
                    raise failure.error from error
            finally:
                call.cancel()
            time.sleep(pause_s)
            attempt += 1

    def _send(
        self, method: grpc.UnaryUnaryMultiCallable[RequestT, ResponseT], request: RequestT
    ) -> _Sent[RequestT, ResponseT]:
        self._check_open()
        future = method.future(request, timeout=self._timeout_s)
        return _Sent(request, future, time.monotonic() + self._timeout_s)

    def _await(
        self,
        method: grpc.UnaryUnaryMultiCallable[RequestT, ResponseT],
        request: RequestT,
        deadline_s: float,
        future: grpc.Future[ResponseT] | None = None,
        *,
        retry: bool = True,
    ) -> ResponseT:
        """The response to a request that may be under way already, asking again where that makes sense."""
        attempt = 1
        while True:
            try:
                if future is not None:
                    return future.result()
                return method(request, timeout=deadline_s - time.monotonic())
            except grpc.RpcError as error:
                failure = calls.failure_of(error, self._target, self._timeout_s)
                remaining_s = deadline_s - time.monotonic()
                pause_s = calls.pause_before_retry_s(failure, attempt, remaining_s) if retry else None
                if pause_s is None:
                    raise failure.error from error
            except grpc.FutureCancelledError as error:
                raise Unavailable("the call was cancelled: the client was closed") from error
            time.sleep(pause_s)
            self._check_open()
            attempt, future = attempt + 1, None

    def _check_open(self) -> None:
        if self._closed:
            raise FailedPrecondition("this client has been closed")

# Generated from aio.py by scripts/sync_client.py; do not edit.
"""The client that blocks. Each method builds requests, waits for the responses and reads them."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc
from grpc_health.v1 import health_pb2

from embedserve.client import answers, arguments, bulk, failures, hints, messages
from embedserve.client.access import access
from embedserve.client.sync_calls import Calls, WrongStatement
from embedserve.client.sync_collections import Collections
from embedserve.client.target import Target
from embedserve.client.values import Embeddings, EncoderInfo, EncoderRef, ImageInput, ItemId, Query, ServerInfo
from embedserve.errors import EmbedserveError, Unavailable
from embedserve.types import Filter, Hit
from embedserve.v1 import admin_service_pb2 as admin_pb
from embedserve.v1 import embedding_service_pb2 as embedding_pb

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

_READY_POLL_S = 0.05


class Client(Collections, WrongStatement):
    """A connection to an embedserve server. Several threads may use it at once.

    Every method raises ``Unavailable`` if no server answers and ``DeadlineExceeded`` if it takes too long. Calls to a
    busy or restarting server are retried within ``timeout_s``, except to create or delete a collection. Iterables of
    inputs are advanced in the caller's thread.

    Args:
        target: HOST:PORT of the server; without a port, 50051. Also ``unix:/path``, and a list of servers with the same
            encoder and data: calls go to them in turn, and to the others while one cannot be reached.
        timeout_s: how long one call may take, with its retries; at most a year. ``embed`` and ``add`` of many inputs
            may take longer in total, but end if no answer comes for this long.
        token: bearer token, sent with every call.
        tls: encrypt, and trust the CAs that this machine trusts.
        ca: encrypt, and trust only the CAs in this PEM file.
        client_cert: PEM file with the certificate that a server with mutual TLS asks for.
        client_key: PEM file with the private key of ``client_cert``.
        allow_plain_token: send the token without TLS even to another machine, if the network in between is safe.
        credentials: channel credentials of gRPC, instead of the four arguments about TLS.

    Every argument that a method does not mean is refused with InvalidInput before anything is sent.

    Raises:
        InvalidInput: an address is none, arguments contradict each other, or the token would be sent in clear text to
            another machine.
        SetupError: a file with certificates cannot be used.
    """

    def __init__(
        self,
        target: Target = "localhost:50051",
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
        server = access(
            arguments.target(target),
            token=arguments.text("token", token, secret=True),
            tls=arguments.flag("tls", tls),
            ca=arguments.certificate_file("ca", ca),
            client_cert=arguments.certificate_file("client_cert", client_cert),
            client_key=arguments.certificate_file("client_key", client_key),
            allow_plain_token=arguments.flag("allow_plain_token", allow_plain_token),
            credentials=arguments.credentials(credentials),
        )
        self._calls = Calls(server, arguments.timeout("timeout_s", timeout_s))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls in flight are cancelled. Closing twice does nothing."""
        self._calls.close()

    # --- Embeddings ---

    def embed(
        self, images: Iterable[ImageInput], *, errors: str = "raise", encoder_fingerprint: str = ""
    ) -> Embeddings:
        """The embeddings of any number of images.

        What fits one message (16 images, 1 MiB) is one call. More goes over a stream, which is reopened if it breaks;
        ``timeout_s`` then limits the time without an answer, not the total.

        Args:
            images: bytes or paths of encoded images, open binary files, PIL images or uint8 arrays (``ImageInput``);
                taken one by one, so that an iterator may give more than fits in memory.
            errors: "raise" raises the first image's error; "keep" puts NaN into its row and its error into ``errors``.
            encoder_fingerprint: refuse unless the server's encoder has it; empty: any encoder.

        Returns:
            float32 [N, D] in the order of the images, with errors and encoder. ``numpy.asarray``, indices and slices
            work on it.

        Raises:
            ImageError: an image cannot be used; the message says which.
            DataError: a file cannot be read.
            EncoderMismatch: the encoder has another fingerprint, or was replaced meanwhile.
        """
        encoder_fingerprint = arguments.text("encoder_fingerprint", encoder_fingerprint)
        collector = bulk.Collector(images, errors)
        reader = bulk.EmbedReader()
        results = self._embed(collector.images(), encoder_fingerprint, reader)
        try:
            for result in results:
                collector.add(result)
        finally:
            results.close()
        return collector.embeddings(reader.encoder or self.server_info().encoder)

    def embed_each(
        self, images: Iterable[ImageInput], *, encoder_fingerprint: str = ""
    ) -> Iterator[NDArray[np.float32] | EmbedserveError]:
        """The embeddings of any number of images, one by one, for more than fits in memory.

        Images are taken in the caller's thread, a limited number ahead of the results that have been taken. Closing the
        iterator cancels what is in flight.

        Yields:
            For each image, in order, its vector (float32 [D], unit norm) or the error that says why there is none.

        Raises:
            EncoderMismatch: as ``embed``.
        """
        encoder_fingerprint = arguments.text("encoder_fingerprint", encoder_fingerprint)
        return self._embed(bulk.several_images(images), encoder_fingerprint, bulk.EmbedReader())

    def _embed(
        self, images: Iterable[ImageInput], encoder_fingerprint: str, reader: bulk.EmbedReader
    ) -> Generator[NDArray[np.float32] | EmbedserveError]:
        chunks = bulk.embed_chunks(images, self._calls.limits(), encoder_fingerprint)
        stub = self._calls.stubs.embedding
        answers = self._calls.bulk(bulk.EMBED, stub.Embed, stub.EmbedStream, chunks)
        try:
            for chunk, response in answers:
                yield from reader.read(chunk, response)
        finally:
            answers.close()

    def encoder(self) -> EncoderInfo:
        """The encoder that the server runs."""
        request = embedding_pb.GetEncoderRequest()
        return messages.encoder_info(self._calls.answer(self._calls.stubs.embedding.GetEncoder, request))

    # --- Search ---

    def search(
        self,
        collection: str,
        *,
        image: ImageInput | None = None,
        vector: ArrayLike | None = None,
        id: ItemId | None = None,
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
            image: bytes or the path of an encoded image, an open binary file, a PIL image or a uint8 array.
            vector: D numbers; ``encoder_fingerprint`` says which encoder made them.
            id: an item of the collection; it is not among its own hits.
            k: largest number of hits, at least 1.
            min_score: only hits with at least this cosine, in [−1, 1].
            filter: only items whose metadata match.
            group_by: metadata key; at most one hit, the closest, for each of its values.
            exact: compare with every item, without approximate structures.
            ef: candidates that HNSW keeps while it searches, at most 65536; 0: what the target recall needs. At most
                one of ``exact``, ``ef``, ``nprobe`` and ``target_recall`` is given.
            nprobe: lists that IVF looks through, at most 65536; 0: what the target recall needs.
            target_recall: recall@10 to search for, in (0, 1]; None: that of the collection.
            include_metadata: return the metadata of each hit.
            include_vectors: return the vector of each hit, float32 [D].
            encoder_fingerprint: of the encoder that made ``vector``; required unless the collection is external.

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
            [arguments.query(image, vector, id)],
            errors="keep",
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
        errors: str = "raise",
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
        """The answers to any number of queries; the other options are those of ``search``.

        Args:
            collection: name or alias.
            queries: each an image, a vector or the id of an item.
            errors: "raise" raises the first query's error; "keep" returns it in the place of the query's hits.

        Queries whose answers together do not fit one message are asked again in smaller calls.

        Returns:
            For each query, in order, its hits; with ``errors="keep"``, or the error that says why there are none.

        Raises:
            InvalidInput, CollectionNotFound, EncoderMismatch: as ``search``, for all queries together.
            ItemNotFound, ImageError, DataError: a query cannot be answered; the message says which.
        """
        collection = arguments.text("collection", collection, may_be_empty=False)
        queries = arguments.several("queries", queries, (Query,))
        is_raised = arguments.errors(errors)
        encoder_fingerprint = arguments.text("encoder_fingerprint", encoder_fingerprint)
        options = arguments.search_options(
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
        chunks = messages.search_chunks(collection, queries, options, self._calls.limits(), encoder_fingerprint)
        method, splitter = self._calls.stubs.search.Search, messages.search_splitter()
        results = self._calls.in_order(method, chunks, messages.search_results, splitter)
        if is_raised:
            messages.raise_first(results)
        return results

    # --- The server ---

    def server_info(self) -> ServerInfo:
        """The server's version, state and limits."""
        request = embedding_pb.GetServerInfoRequest()
        info = messages.server_info(self._calls.answer(self._calls.stubs.embedding.GetServerInfo, request))
        self._calls.known_limits = info.limits
        return info

    def replace_encoder(self, *, fingerprint: str = "") -> EncoderRef:
        """Have the server read its encoder file again and serve the encoder in it, without a pause.

        The server must require tokens, and this client must have one with the role write.

        Args:
            fingerprint: refuse unless the file's encoder has it; empty: any encoder.

        Returns:
            The encoder that is served now.

        Raises:
            EncoderFileError: the file cannot be used; the server keeps the old encoder.
            EncoderMismatch: the encoder in the file has another fingerprint.
            FailedPrecondition: the server has no tokens.
        """
        fingerprint = arguments.text("fingerprint", fingerprint)
        request = messages.message(admin_pb.ReplaceEncoderRequest, fingerprint=fingerprint)
        response = self._calls.answer(self._calls.stubs.admin.ReplaceEncoder, request)
        return answers.encoder(response, "current", expected=fingerprint)

    def wait_ready(self, timeout_s: float = 60) -> None:
        """Wait until the server is ready.

        Args:
            timeout_s: how long to wait, more than 0 and at most a year.

        Raises:
            Unavailable: it cannot be reached or is still starting after ``timeout_s``.
        """
        timeout_s = arguments.timeout("timeout_s", timeout_s)
        deadline_s = time.monotonic() + timeout_s
        state = "nothing answers there"
        while (remaining_s := deadline_s - time.monotonic()) > 0:
            self._calls.check_open()
            try:
                request = health_pb2.HealthCheckRequest()
                response = self._calls.stubs.health.Check(request, timeout=remaining_s)
            except grpc.RpcError as error:
                state = failures.not_ready_reason(error, self._calls.target, state)
            else:
                if response.status == health_pb2.HealthCheckResponse.SERVING:
                    return
                state = "it is starting or stopping"
            time.sleep(min(_READY_POLL_S, max(0.0, deadline_s - time.monotonic())))
        raise Unavailable(
            f"the server at {self._calls.target} is not ready after {timeout_s:g} s: {state}", hint=hints.START
        )

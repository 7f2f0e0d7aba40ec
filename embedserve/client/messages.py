"""Requests and responses of the client, as pure functions that the sync and the async class share."""

from __future__ import annotations

import json
import os
import stat
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from google.protobuf.message import Message

from embedserve import wire
from embedserve.client.calls import CALLS_IN_FLIGHT
from embedserve.client.parts import Entry, Part, images_per_call, pack, part_of, room_bytes_for
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
from embedserve.errors import (
    DataError,
    EmbedserveError,
    EncoderMismatch,
    ImageTooLarge,
    InternalError,
    InvalidInput,
    ItemNotFound,
)
from embedserve.types import Filter, Hit, Item, Keep, Limits, SearchOptions, check_metadata
from embedserve.v1 import collection_service_pb2 as collection_pb
from embedserve.v1 import common_pb2 as common_pb
from embedserve.v1 import embedding_service_pb2 as embedding_pb
from embedserve.v1 import search_service_pb2 as search_pb

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

RequestT = TypeVar("RequestT", bound=Message)
ResultT = TypeVar("ResultT")


@contextmanager
def _writing() -> Iterator[None]:
    """What protobuf refuses (a number out of range, text that is no UTF-8) as an error of ours."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"the request cannot be written: {error}") from error


def message(kind: type[RequestT], **fields: Any) -> RequestT:
    """A small request of the given kind.

    Raises:
        InvalidInput: a value is of the wrong type, out of range or no text in UTF-8.
    """
    with _writing():
        return kind(**fields)


def read_image(image: ImageInput, limits: Limits) -> bytes:
    """The encoded bytes of an image.

    Raises:
        DataError: the file cannot be read.
        ImageTooLarge: it has more than ``max_image_bytes``.
        InvalidInput: it is neither bytes nor a path.
    """
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        try:
            # The size first: nobody wants to read a film that happens to be in the folder.
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{path} is no regular file")
            size_bytes = status.st_size
            data = path.read_bytes() if size_bytes <= limits.max_image_bytes else b""
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
        size_bytes = max(size_bytes, len(data))
    elif isinstance(image, (bytes, bytearray, memoryview)):
        data = bytes(image)
        size_bytes = len(data)
    else:
        raise InvalidInput(f"an image is bytes or a path, not a {type(image).__name__}")
    if size_bytes > limits.max_image_bytes:
        raise ImageTooLarge(f"the image has {size_bytes} bytes; max_image_bytes is {limits.max_image_bytes}")
    return data


def vector_to_proto(values: ArrayLike) -> common_pb.Vector:
    """A vector of D numbers as a message. Whether D is right and all are finite is for the server to say.

    Raises:
        InvalidInput: it is not a row of numbers.
    """
    try:
        with np.errstate(over="ignore"):
            vector = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"the vector is not a row of numbers: {error}") from error
    if vector.ndim != 1 or not vector.size:
        raise InvalidInput(f"the vector has shape {vector.shape}; it is one row of D numbers")
    return wire.vector_to_proto(vector, wire.PACKED_F32)


# --- Embed -----------------------------------------------------------------


def embed_parts(
    images: Iterable[ImageInput], limits: Limits, encoder_fingerprint: str
) -> Iterator[Part[embedding_pb.EmbedRequest]]:
    """Embed calls for any number of images."""
    empty = embedding_pb.EmbedRequest(vector_encoding=wire.PACKED_F32, encoder_fingerprint=encoder_fingerprint)

    def entries() -> Iterator[Entry[bytes]]:
        for image in images:
            try:
                data = read_image(image, limits)
                yield Entry(data, len(data), is_image=True)
            except EmbedserveError as error:
                yield Entry(error)

    def build(data: list[bytes]) -> embedding_pb.EmbedRequest:
        request = embedding_pb.EmbedRequest(images=data)
        request.MergeFrom(empty)
        return request

    count = images_per_call(limits)
    for group in pack(entries(), room_bytes=room_bytes_for(limits, empty), most=count, most_images=count):
        yield part_of(group, build)


class EmbedReader:
    """Reads the responses of the calls that together embed one list of images."""

    encoder: EncoderRef | None = None
    """Who made the vectors; None before the first response."""

    def read(
        self, part: Part[embedding_pb.EmbedRequest], response: embedding_pb.EmbedResponse | None
    ) -> list[NDArray[np.float32] | EmbedserveError]:
        """The vector of each image of the part, or why there is none.

        Raises:
            EncoderMismatch: the server's encoder was replaced between two calls, so that vectors would be mixed.
        """
        if response is None:
            return part.merge([])
        encoder = encoder_ref(response.encoder)
        if self.encoder is not None and encoder.fingerprint != self.encoder.fingerprint:
            raise EncoderMismatch(
                f"the server's encoder was replaced while these images were embedded:"
                f" {self.encoder.name} before, {encoder.name} now",
                hint="embed them again",
            )
        self.encoder = encoder
        answers = _read("image", response.results, "vector", lambda result: wire.vector_from_proto(result.vector))
        return part.merge(answers)


class Collector:
    """Gathers the results of ``embed`` and gives failures their place in words."""

    def __init__(self, images: Iterable[ImageInput], errors: str) -> None:
        if errors not in ("raise", "keep"):
            raise InvalidInput(f'errors is {errors!r}, not "raise" or "keep"')
        if isinstance(images, (bytes, bytearray, memoryview, str, os.PathLike)):
            raise InvalidInput("embed takes several images; give a list, as in embed([image])")
        self._images, self._raise = images, errors == "raise"
        self._total = f" of {len(images)}" if isinstance(images, Sized) else ""
        self._names: list[str] = []
        self._results: list[NDArray[np.float32] | EmbedserveError] = []

    def images(self) -> Iterator[ImageInput]:
        """The images, to be taken once."""
        for image in self._images:
            self._names.append(str(image) if isinstance(image, (str, os.PathLike)) else "")
            yield image

    def add(self, result: NDArray[np.float32] | EmbedserveError) -> None:
        """Take the next result.

        Raises:
            EmbedserveError: it is an error, and errors are to be raised; its message says which image.
        """
        if isinstance(result, EmbedserveError) and self._raise:
            position = len(self._results)
            name = self._names[position]
            if name and isinstance(result, DataError):
                raise result  # it names the file already
            raise result.at(name or f"image {position + 1}{self._total}")
        self._results.append(result)

    def embeddings(self, encoder: EncoderRef) -> Embeddings:
        """Everything taken so far."""
        vectors = np.full((len(self._results), encoder.dimension), np.nan, dtype=np.float32)
        errors: dict[int, EmbedserveError] = {}
        for position, result in enumerate(self._results):
            if isinstance(result, EmbedserveError):
                errors[position] = result
            else:
                vectors[position] = result
        return Embeddings(vectors=vectors, errors=errors, encoder=encoder)


# --- Add -------------------------------------------------------------------


def add_parts(
    collection: str, items: Iterable[ItemInput], limits: Limits, encoder_fingerprint: str
) -> Iterator[Part[collection_pb.UpsertRequest]]:
    """Upsert calls for any number of items.

    An id that comes again waits for the calls before it: calls side by side may be answered in any order, and the
    later item counts.
    """
    with _writing():
        empty = collection_pb.UpsertRequest(collection=collection, encoder_fingerprint=encoder_fingerprint)
    under_way: deque[set[str]] = deque(maxlen=CALLS_IN_FLIGHT)
    packed = pack(
        (_item_entry(item, limits) for item in items),
        room_bytes=room_bytes_for(limits, empty),
        most=limits.max_items,
        most_images=images_per_call(limits),
    )

    def build(messages: list[collection_pb.UpsertItem]) -> collection_pb.UpsertRequest:
        request = collection_pb.UpsertRequest(items=messages)
        request.MergeFrom(empty)
        return request

    for group in packed:
        ids = {entry.id for entry in group}
        after_others = any(not before.isdisjoint(ids) for before in under_way)
        if after_others:
            under_way.clear()
        under_way.append(ids)
        yield part_of(group, build, after_others=after_others)


def _item_entry(item: ItemInput, limits: Limits) -> Entry[collection_pb.UpsertItem]:
    # The id is made here, not by the server, so that a call that is sent again cannot store the item twice.
    id = item.id or uuid.uuid4().hex
    try:
        check_metadata(item.metadata)
        with _writing():
            message = collection_pb.UpsertItem(id=id)
            wire.metadata_into(message.metadata, item.metadata)
        if item.image is not None:
            message.image = read_image(item.image, limits)
        elif item.vector is not None:
            message.vector.CopyFrom(vector_to_proto(item.vector))
    except EmbedserveError as error:
        return Entry(error, id=id)
    return Entry(message, message.ByteSize(), is_image=item.image is not None, id=id)


def add_results(
    part: Part[collection_pb.UpsertRequest], response: collection_pb.UpsertResponse | None
) -> list[AddResult]:
    """What became of each item of the part."""
    answers = _read("item", response.results if response is not None else (), "id", lambda result: result.id)
    return [
        AddResult(id, result) if isinstance(result, EmbedserveError) else AddResult(result)
        for id, result in zip(part.ids, part.merge(answers), strict=True)
    ]


# --- Search ----------------------------------------------------------------


def search_parts(
    collection: str, queries: Iterable[Query], options: SearchOptions, limits: Limits, encoder_fingerprint: str
) -> Iterator[Part[search_pb.SearchRequest]]:
    """Search calls for any number of queries.

    Raises:
        InvalidInput: an option is out of range.
    """
    if options.k < 1:
        raise InvalidInput(f"k is {options.k}; it is 1 to {limits.max_k}")
    with _writing():
        empty = search_pb.SearchRequest(
            collection=collection,
            k=options.k,
            min_score=options.min_score,
            filter=wire.filter_to_proto(options.filter) if options.filter is not None else None,
            group_by=options.group_by,
            exact=options.exact,
            include_metadata=options.include_metadata,
            include_vectors=options.include_vectors,
            vector_encoding=wire.PACKED_F32,
            encoder_fingerprint=encoder_fingerprint,
        )
    packed = pack(
        (_query_entry(query, limits) for query in queries),
        room_bytes=room_bytes_for(limits, empty),
        most=limits.max_queries,
        most_images=images_per_call(limits),
    )

    def build(messages: list[search_pb.SearchQuery]) -> search_pb.SearchRequest:
        request = search_pb.SearchRequest(queries=messages)
        request.MergeFrom(empty)
        return request

    for group in packed:
        yield part_of(group, build)


def _query_entry(query: Query, limits: Limits) -> Entry[search_pb.SearchQuery]:
    message = search_pb.SearchQuery()
    try:
        if query.image is not None:
            message.image = read_image(query.image, limits)
        elif query.vector is not None:
            message.vector.CopyFrom(vector_to_proto(query.vector))
        elif query.id is not None:
            with _writing():
                message.item_id = query.id
    except EmbedserveError as error:
        return Entry(error)
    return Entry(message, message.ByteSize(), is_image=query.image is not None)


def search_results(
    part: Part[search_pb.SearchRequest], response: search_pb.SearchResponse | None
) -> list[list[Hit] | EmbedserveError]:
    """The hits of each query of the part, or why there are none."""
    results = response.results if response is not None else ()
    return part.merge(_read("query", results, "hits", lambda result: wire.hits_from_proto(result.hits)))


# --- Items -----------------------------------------------------------------


def get_items_parts(
    collection: str,
    ids: Sequence[str],
    limits: Limits,
    *,
    include_metadata: bool,
    include_vectors: bool,
    include_media: bool,
) -> Iterator[Part[collection_pb.GetItemsRequest]]:
    """GetItems calls for any number of ids."""
    # An original may fill half a message by itself, and how large it is shows only in the answer.
    media_per_call = max(1, (limits.max_message_bytes - (1 << 20)) // limits.max_image_bytes)
    for start in range(0, len(ids), step := media_per_call if include_media else _items_per_call(limits)):
        with _writing():
            request = collection_pb.GetItemsRequest(
                collection=collection,
                ids=ids[start : start + step],
                include_metadata=include_metadata,
                include_vectors=include_vectors,
                include_media=include_media,
                vector_encoding=wire.PACKED_F32,
            )
        yield Part(request, [None] * len(request.ids))


def get_items_results(
    part: Part[collection_pb.GetItemsRequest], response: collection_pb.GetItemsResponse | None
) -> list[Item | None]:
    """The items of the part, None where there is none.

    Raises:
        EmbedserveError: an id that cannot be asked for.
    """
    results = response.results if response is not None else ()
    items: list[Item | None] = []
    for answer in part.merge(_read("id", results, "item", lambda result: wire.item_from_proto(result.item))):
        if not isinstance(answer, EmbedserveError):
            items.append(answer)
        elif isinstance(answer, ItemNotFound):
            items.append(None)
        else:
            raise answer
    return items


def delete_items_parts(
    collection: str, ids: Sequence[str], limits: Limits
) -> Iterator[Part[collection_pb.DeleteItemsRequest]]:
    """DeleteItems calls for any number of ids."""
    for start in range(0, len(ids), step := limits.max_items):
        with _writing():
            request = collection_pb.DeleteItemsRequest(collection=collection, ids=ids[start : start + step])
        yield Part(request, [None] * len(request.ids))


def _items_per_call(limits: Limits) -> int:
    # With metadata of the largest size they still fit one message, beside vectors of a few thousand numbers.
    return max(1, min(limits.max_items, limits.max_message_bytes // (2 * limits.max_metadata_bytes)))


def list_items_request(
    collection: str,
    *,
    filter: Filter | None,
    include_metadata: bool,
    include_vectors: bool,
    page_size: int,
) -> collection_pb.ListItemsRequest:
    """Asks for the first page.

    Raises:
        InvalidInput: the page size is not positive, or the filter cannot be written.
    """
    if page_size < 1:
        raise InvalidInput(f"page_size is {page_size}; it is at least 1")
    with _writing():
        return collection_pb.ListItemsRequest(
            collection=collection,
            page_size=page_size,
            filter=wire.filter_to_proto(filter) if filter is not None else None,
            include_metadata=include_metadata,
            include_vectors=include_vectors,
            vector_encoding=wire.PACKED_F32,
        )


def next_page_request(
    request: collection_pb.ListItemsRequest, response: collection_pb.ListItemsResponse
) -> collection_pb.ListItemsRequest | None:
    """Asks for the page after the response; None if that was the last."""
    if not response.next_page_token:
        return None
    following = collection_pb.ListItemsRequest()
    following.CopyFrom(request)
    following.page_token = response.next_page_token
    return following


# --- Collections, encoder, server ------------------------------------------


def create_collection_request(
    name: str, keep: Keep | str, external: bool, dimension: int
) -> collection_pb.CreateCollectionRequest:
    """Asks for a new collection.

    Raises:
        InvalidInput: ``keep`` or ``dimension`` is not allowed.
    """
    if keep not in list(Keep):
        raise InvalidInput(f"keep is {str(keep)!r}, not one of {', '.join(Keep)}")
    with _writing():
        return collection_pb.CreateCollectionRequest(
            name=name, keep_media=wire.keep_to_proto(Keep(keep)), external=external, dimension=dimension
        )


def encoder_ref(message: common_pb.EncoderRef) -> EncoderRef:
    """Which encoder a response names."""
    return EncoderRef(message.name, message.fingerprint, message.dimension)


def encoder_info(response: embedding_pb.GetEncoderResponse) -> EncoderInfo:
    """The encoder of a response."""
    encoder = response.encoder
    return EncoderInfo(
        name=encoder.name,
        fingerprint=encoder.fingerprint,
        dimension=encoder.dimension,
        size_px=encoder.size_px,
        resize_px=encoder.preprocess.resize_px,
        filter=encoder.preprocess.filter,
        channels=encoder.channels,
        method=encoder.method,
        backbone=encoder.backbone,
        precision=encoder.precision,
        metadata=json.loads(encoder.metadata_json) if encoder.metadata_json else {},
    )


def server_info(response: embedding_pb.GetServerInfoResponse) -> ServerInfo:
    """The server of a response."""
    return ServerInfo(
        version=response.version,
        started_unix_s=response.started_at.ToNanoseconds() / 1e9,
        provider=response.provider,
        encoder=encoder_ref(response.encoder),
        limits=wire.limits_from_proto(response.limits),
        images_in_flight=response.images_in_flight,
        has_collections=response.has_collections,
    )


def _read(
    noun: str, results: Sequence[Any], field: str, value_of: Callable[[Any], ResultT]
) -> list[ResultT | EmbedserveError]:
    """The value in each result of a response, or its error.

    The server says in an error which of the call's inputs it is about. That is taken off, since the caller knows
    nothing of how his inputs were spread over calls.
    """
    answers: list[ResultT | EmbedserveError] = []
    for position, result in enumerate(results, start=1):
        kind = result.WhichOneof("result")
        if kind == field:
            answers.append(value_of(result))
        elif kind == "error":
            result.error.message = result.error.message.removeprefix(f"{noun} {position} of {len(results)}: ")
            answers.append(wire.error_from_status(result.error))
        else:
            answers.append(InternalError("the server gave an empty result"))
    return answers

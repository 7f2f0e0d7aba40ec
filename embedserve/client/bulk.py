"""Requests and responses of the bulk methods, embed and add.

What fits one message is a single call, which is answered soonest; more goes over a stream. Both kinds of call have the
same content, so one builder and one reader serve both.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from google.protobuf.message import Message

from embedserve import wire
from embedserve.client import answers, arguments
from embedserve.client.chunks import Chunk, Entry, chunk_of, images_per_call, pack, read_results, room_bytes_for
from embedserve.client.images import is_open_file, is_path, is_pil, path_text, read_image
from embedserve.client.inputs import read_ahead, vector_to_proto, writing
from embedserve.client.values import AddResult, Embeddings, EncoderRef, ImageInput, ItemInput
from embedserve.errors import DataError, EmbedserveError, EncoderMismatch, InvalidInput, ItemsFailed
from embedserve.metadata import plain_id, plain_metadata, shown
from embedserve.types import Limits, check_metadata
from embedserve.v1 import collection_service_pb2 as collection_pb
from embedserve.v1 import embedding_service_pb2 as embedding_pb

if TYPE_CHECKING:
    from numpy.typing import NDArray

StreamRequestT = TypeVar("StreamRequestT", bound=Message)
StreamResponseT = TypeVar("StreamResponseT", bound=Message)
RequestT = TypeVar("RequestT", bound=Message)

IMAGES_PER_MESSAGE = 16
"""An image costs 0.2 ms of the client's CPU at one image per message and 0.04 ms at 16; more gain little."""

BYTES_PER_MESSAGE = (1 << 20) - 4096
"""A message is full at 1 MiB: a larger one delays others, gains nothing, and would not pass an nginx that nobody has
configured, which cuts each stream after 1 MiB, HTTP/2 frames included."""

_GATHERED_FOR_S = 0.05
"""Inputs that come slowly, as from a camera, are not kept until the message is full."""


@dataclass(frozen=True)
class BulkMethod(Generic[StreamRequestT, StreamResponseT, RequestT]):
    """How the single call and the stream of one bulk method correspond."""

    as_call: Callable[[StreamRequestT], RequestT]
    """The request of a single call with the content of a stream's request."""
    is_answer: Callable[[StreamRequestT, StreamResponseT, int], bool]
    """Whether a response answers a request that follows this many inputs on its stream."""


EMBED: BulkMethod[embedding_pb.EmbedStreamRequest, embedding_pb.EmbedStreamResponse, embedding_pb.EmbedRequest] = (
    BulkMethod(
        as_call=lambda request: embedding_pb.EmbedRequest(
            images=request.images,
            vector_encoding=request.vector_encoding,
            encoder_fingerprint=request.encoder_fingerprint,
        ),
        is_answer=lambda request, response, _position: response.key == request.key,
    )
)

ADD: BulkMethod[collection_pb.UpsertStreamRequest, collection_pb.UpsertStreamResponse, collection_pb.UpsertRequest] = (
    BulkMethod(
        as_call=lambda request: collection_pb.UpsertRequest(
            collection=request.collection, items=request.items, encoder_fingerprint=request.encoder_fingerprint
        ),
        is_answer=lambda _request, response, position: response.index == position,
    )
)


# --- Embed -----------------------------------------------------------------


def embed_chunks(
    images: Iterable[ImageInput], limits: Limits, encoder_fingerprint: str
) -> Iterator[Chunk[embedding_pb.EmbedStreamRequest]]:
    """EmbedStream requests for any number of images."""
    empty = embedding_pb.EmbedStreamRequest(
        key="0" * 20, vector_encoding=wire.PACKED_F32, encoder_fingerprint=encoder_fingerprint
    )

    def entry(image: ImageInput) -> Entry[bytes]:
        try:
            data = read_image(image, limits)
        except EmbedserveError as error:
            return Entry(error)
        return Entry(data, len(data), is_image=True)

    count = min(IMAGES_PER_MESSAGE, images_per_call(limits))
    groups = pack(
        read_ahead(images, is_path, entry),
        room_bytes=room_bytes_for(limits, empty),
        max_entries=count,
        max_images=count,
        full_bytes=BYTES_PER_MESSAGE,
        full_after_s=_GATHERED_FOR_S,
    )
    for number, group in enumerate(groups):

        def build(data: list[bytes], key: str = str(number)) -> embedding_pb.EmbedStreamRequest:
            return embedding_pb.EmbedStreamRequest(
                key=key,
                images=data,
                vector_encoding=empty.vector_encoding,
                encoder_fingerprint=encoder_fingerprint,
            )

        yield chunk_of(group, build)


class EmbedReader:
    """Reads the responses with the embeddings of one list of images."""

    encoder: EncoderRef | None = None
    """The encoder that made the vectors; None before the first response."""

    def read(
        self,
        chunk: Chunk[embedding_pb.EmbedStreamRequest],
        response: embedding_pb.EmbedStreamResponse | embedding_pb.EmbedResponse | None,
    ) -> list[NDArray[np.float32] | EmbedserveError]:
        """The vector of each image of the chunk, or why there is none.

        Raises:
            EncoderMismatch: the server's encoder was replaced between two responses, so vectors would be mixed.
        """
        if response is None:
            return chunk.merge([])
        asked = chunk.request.encoder_fingerprint if chunk.request is not None else ""
        encoder = answers.encoder(response, expected=asked)
        if self.encoder is not None and encoder.fingerprint != self.encoder.fingerprint:
            raise EncoderMismatch(
                f"the server's encoder was replaced while these images were embedded:"
                f" {self.encoder.name} before, {encoder.name} now",
                hint="embed them again",
            )
        self.encoder = encoder
        results = _results(chunk, response)
        dimension = encoder.dimension
        return chunk.merge(
            read_results("image", results, "vector", lambda result: answers.vector(result.vector, dimension))
        )


def several_images(images: Any) -> Iterable[ImageInput]:
    """The images of ``embed``, which are not taken yet.

    Raises:
        InvalidInput: they are not several.
    """
    if is_pil(images) or is_open_file(images):
        raise InvalidInput(f"images is {shown(images)}, and takes several", hint="give a list: images=[image]")
    if isinstance(images, np.ndarray) and images.ndim != 1:
        if images.ndim != 4:
            raise InvalidInput(
                f"images is an array {list(images.shape)}; of several images it is [N, H, W, 3]",
                hint="write images=[array] for one, images=list(array) for several grey ones",
            )
        return images
    return arguments.several("images", images)


class Collector:
    """Gathers the results of ``embed``, and names the image in an error that is raised."""

    def __init__(self, images: Iterable[ImageInput], errors: str) -> None:
        self._raise = arguments.errors(errors)
        self._images = several_images(images)
        self._total = f" of {len(images)}" if isinstance(images, Sized) else ""
        self._names: list[str] = []
        self._results: list[NDArray[np.float32] | EmbedserveError] = []

    def images(self) -> Iterator[ImageInput]:
        """The images; can be iterated once."""
        for image in self._images:
            self._names.append(path_text(image) if is_path(image) else "")
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


def add_chunks(
    collection: str, items: Iterable[ItemInput], limits: Limits, encoder_fingerprint: str
) -> Iterator[Chunk[collection_pb.UpsertStreamRequest]]:
    """UpsertStream requests for any number of items."""
    with writing():
        empty = collection_pb.UpsertStreamRequest(collection=collection, encoder_fingerprint=encoder_fingerprint)

    def build(messages: list[collection_pb.UpsertItem]) -> collection_pb.UpsertStreamRequest:
        request = collection_pb.UpsertStreamRequest(items=messages)
        request.MergeFrom(empty)
        return request

    groups = pack(
        read_ahead(items, lambda item: is_path(getattr(item, "image", None)), lambda item: _item_entry(item, limits)),
        room_bytes=room_bytes_for(limits, empty),
        max_entries=limits.max_items,
        max_images=min(IMAGES_PER_MESSAGE, images_per_call(limits)),
        full_bytes=BYTES_PER_MESSAGE,
        full_after_s=_GATHERED_FOR_S,
    )
    for group in groups:
        yield chunk_of(group, build)


def _item_entry(item: ItemInput, limits: Limits) -> Entry[collection_pb.UpsertItem]:
    id = ""
    try:
        if not isinstance(item, ItemInput):
            raise InvalidInput(f"one of items is {shown(item)}", hint="write ItemInput(id=…, image=…, metadata=…)")
        if isinstance(item.id, str):
            # The id is made here, not by the server, so that an item that is sent twice is stored once.
            id = item.id or uuid.uuid4().hex
        id = plain_id(id or item.id, "id")
        metadata = plain_metadata(item.metadata)
        check_metadata(metadata)
        with writing():
            message = collection_pb.UpsertItem(id=id)
            wire.metadata_into(message.metadata, metadata)
        if item.image is not None:
            message.image = read_image(item.image, limits)
        elif item.vector is not None:
            message.vector.CopyFrom(vector_to_proto(item.vector))
    except EmbedserveError as error:
        return Entry(error, id=id)
    return Entry(message, message.ByteSize(), is_image=item.image is not None, id=id)


def add_results(
    chunk: Chunk[collection_pb.UpsertStreamRequest],
    response: collection_pb.UpsertStreamResponse | collection_pb.UpsertResponse | None,
) -> list[AddResult]:
    """The outcome for each item of the chunk."""
    results = _results(chunk, response) if response is not None else ()
    found = read_results("item", results, "id", lambda result: result.id)
    if chunk.request is not None:
        answers.ids([item.id for item in chunk.request.items], [result.id for result in results])
    return [
        AddResult(id, result) if isinstance(result, EmbedserveError) else AddResult(result)
        for id, result in zip(chunk.ids, chunk.merge(found), strict=True)
    ]


def raise_failures(results: Sequence[AddResult], done: str = "written") -> None:
    """Raise if something was not done to an item.

    Raises:
        ItemsFailed: with all results; its message names the first item that failed.
    """
    failed = [(position, result) for position, result in enumerate(results) if result.error is not None]
    if not failed:
        return
    position, first = failed[0]
    error = first.error
    assert error is not None
    name = f"item {first.id!r}" if first.id else f"items[{position}]"
    others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    raise ItemsFailed(
        f"{len(failed)} of {len(results)} items were not {done}: {name}: {error.message}{others}",
        hint=f"{error.hint}; " * bool(error.hint)
        + f"the others are {done}; error.failures has all that failed, and errors='keep' returns them instead",
        results=results,
    ) from error


def _results(chunk: Chunk[Any], response: Any) -> Sequence[Any]:
    """The result of each input that was sent; a request that is refused as a whole has one result for all."""
    if "result" in response.DESCRIPTOR.fields_by_name and response.HasField("result"):
        return [response.result] * chunk.sent
    results: Sequence[Any] = response.results
    return results

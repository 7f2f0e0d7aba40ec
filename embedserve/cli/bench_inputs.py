"""What `embedserve bench serve` sends, as ready calls: images of the user, of the sample or drawn, or vectors."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from embedserve.errors import DataError, EmbedserveError, InvalidInput

if TYPE_CHECKING:
    from embedserve.client import Client
    from embedserve.loadtest.requests import Load
    from embedserve.types import Limits
    from embedserve.v1.common_pb2 import Vector

MAX_IMAGES = 1000
DRAWN_IMAGES = 24
VECTORS = 256
ITEM_PREFIX = "embedserve-bench-"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The options that say what to send."""

    call: str
    """"embed", "search" or "upsert"."""
    per_call: int
    stream: bool
    paths: Sequence[Path]
    sample: bool
    size: str
    """Of drawn images, as in "640x480"."""
    vectors: bool
    collection: str
    k: int
    seed: int
    exclude: Sequence[str] = ()
    """Patterns of files and folders to leave out."""


def ready(inputs: Inputs, client: Client) -> tuple[Load, str]:
    """The calls to make, and a description of their content.

    Raises:
        LimitExceeded: a call exceeds a limit of the server.
        DataError: no image can be read.
        CollectionNotFound: there is no such collection.
    """
    from embedserve.loadtest import requests
    from embedserve.v1 import collection_service_pb2 as collection_pb
    from embedserve.v1 import search_service_pb2 as search_pb

    limits = client.server_info().limits
    if inputs.call == "embed":
        limits.check("max_images", inputs.per_call, "images in a call")
        images, words = _images(inputs, limits)
        make = requests.embed_stream if inputs.stream else requests.embed
        return make(images, inputs.per_call), words

    collection = client.get_collection(inputs.collection)
    vectors: list[Vector] = []
    if inputs.vectors:
        vectors, images = _vectors(collection.dimension, inputs.seed), []
        words = f"{len(vectors)} random vectors of {collection.dimension} numbers"
    else:
        images, words = _images(inputs, limits)
    made_by = "" if collection.external or not vectors else collection.fingerprint
    if inputs.call == "search":
        limits.check("max_queries", inputs.per_call, "queries in a call")
        queries = [search_pb.SearchQuery(image=image) for image in images]
        queries += [search_pb.SearchQuery(vector=vector) for vector in vectors]
        load = requests.search(queries, inputs.per_call, collection=inputs.collection, k=inputs.k, made_by=made_by)
    else:
        limits.check("max_items" if vectors else "max_images", inputs.per_call, "items in a call")
        items = [collection_pb.UpsertItem(image=image) for image in images]
        items += [collection_pb.UpsertItem(vector=vector) for vector in vectors]
        load = requests.upsert(
            items, inputs.per_call, collection=inputs.collection, made_by=made_by, prefix=ITEM_PREFIX
        )
    return load, words


def _images(inputs: Inputs, limits: Limits) -> tuple[list[bytes], str]:
    if inputs.paths:
        files = _files(inputs.paths, inputs.exclude)
        images, of = _read(files, limits), f" of {', '.join(map(str, inputs.paths))}"
        what = f"{len(images)} of the {len(files)} images" if len(images) < len(files) else f"{len(images)} images"
    elif inputs.sample:
        from embedserve.cli import sample

        with tempfile.TemporaryDirectory(prefix="embedserve-bench-") as folder:
            images = _read(_files([sample.unpack(Path(folder))[1]]), limits)
        what, of = f"{len(images)} images", " of the sample"
    else:
        images = _drawn(inputs.size, inputs.seed, limits)
        what, of = f"{len(images)} drawn JPEGs", f" of {inputs.size}"
    return images, f"{what}{of}, {sum(map(len, images)) / len(images) / 1024:.3g} KB on average"


def _drawn(size: str, seed: int, limits: Limits) -> list[bytes]:
    from embedserve.cli.terminal.output import progress
    from embedserve.loadtest.pictures import draw

    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
    if found is None or not int(found[1]) * int(found[2]):
        raise InvalidInput(f"{size!r} is not the size of an image", hint="width and height in pixels: --size 640x480")
    width, height = int(found[1]), int(found[2])
    limits.check("max_image_pixels", width * height, "pixels in an image")
    images = []
    with progress("drawing", DRAWN_IMAGES) as bar:
        for image in draw(width, height, DRAWN_IMAGES, seed):
            images.append(image)
            bar.advance()
    return images


def _files(paths: Sequence[Path], patterns: Sequence[str] = ()) -> list[Path]:
    from embedserve.cli.passed_over import say_left_out
    from embedserve.cli.terminal.output import say_failed
    from embedserve.folder.exclude import Exclude
    from embedserve.folder.find import find

    exclude = Exclude(patterns)
    found = find(paths, exclude, files_too=True, unique=False)
    for unread, why in found.unreadable:
        say_failed(str(unread), f"cannot be read: {why}")
    say_left_out(found, exclude)
    if not found.files:
        raise DataError(f"none of {', '.join(map(str, paths))} has an image that can be read")
    return [file.path for file in found.files]


def _read(files: Sequence[Path], limits: Limits) -> list[bytes]:
    """The bytes of at most MAX_IMAGES files, taken evenly; files that cannot be read are named and skipped."""
    from embedserve.cli.terminal.output import say_failed
    from embedserve.images.codec import read_file
    from embedserve.loadtest.requests import MAX_BYTES

    images: list[bytes] = []
    size_bytes = 0
    for path in files[:: -(-len(files) // MAX_IMAGES)]:
        try:
            image = read_file(path, limits)
        except (EmbedserveError, OSError) as error:
            say_failed(str(path), str(error))
            continue
        size_bytes += len(image)
        if images and size_bytes > MAX_BYTES:
            break
        images.append(image)
    if not images:
        raise DataError(f"none of {len(files)} files can be read")
    return images


def _vectors(dimension: int, seed: int) -> list[Vector]:
    import numpy as np

    from embedserve import wire

    rows = np.random.default_rng(seed).standard_normal((VECTORS, dimension)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return [wire.vector_to_proto(row, wire.PACKED_F32) for row in rows]

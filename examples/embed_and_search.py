"""Embed images, put a folder into a collection and search it, with the Python client.

Needs a running server with a data directory:

    embedserve serve encoder.onnx --data data/
    python examples/embed_and_search.py photos/ query.jpg
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from embedserve import Client, EmbedserveError, Eq, ItemInput, errors

COLLECTION = "example"


def main(folder: Path, query: Path, server: str) -> None:
    """Embed, add, and search by image, by filter and by vector."""
    with Client(server) as client:
        client.wait_ready(timeout_s=30)
        encoder = client.encoder()
        print(f"encoder {encoder.name}: {encoder.dimension} numbers per image")

        # Vectors without a collection: float32 [2, D] with unit norm, so a dot product is the cosine.
        images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        embeddings = client.embed([query, images[0]])
        print(f"cosine of {query.name} and {images[0].name}: {embeddings[0] @ embeddings[1]:.4f}")

        with suppress(errors.AlreadyExists):  # made by an earlier run; items with the same ids are replaced
            client.create_collection(COLLECTION)
        items = (
            ItemInput(id=path.relative_to(folder).as_posix(), image=path, metadata={"folder": path.parent.name})
            for path in images
        )
        for result in client.add(COLLECTION, items, errors="keep"):  # without it, the first error is raised at the end
            if result.error is not None:
                print(f"not added: {result.id}: {result.error}", file=sys.stderr)
        print(f"collection {COLLECTION}: {client.get_collection(COLLECTION).items} items")

        print("most like the query:")
        for hit in client.search(COLLECTION, image=query, k=3):
            print(f"  {hit.score:.4f}  {hit.id}")

        subfolder = images[0].parent.name
        print(f"most like the query in {subfolder}, by its vector:")
        for hit in client.search(
            COLLECTION,
            vector=embeddings[0],
            encoder_fingerprint=embeddings.encoder.fingerprint,
            k=3,
            filter=Eq("folder", subfolder),
        ):
            print(f"  {hit.score:.4f}  {hit.id}")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: embed_and_search.py FOLDER QUERY [HOST:PORT]")
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) == 4 else "localhost:50051")
    except EmbedserveError as error:
        sys.exit(f"error: {error.message}\nhint:  {error.hint}")

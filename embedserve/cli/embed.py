"""`embedserve embed`: files and folders → vectors, by a server or in this process."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from embedserve.cli.terminal.image_limits import image_limit_options
from embedserve.cli.terminal.options import exclude_option, server_option
from embedserve.errors import DataError, EmbedserveError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedserve.types import Limits


@dataclass(frozen=True)
class _Embedder:
    """What embeds: a server, or an encoder in this process."""

    name: str
    fingerprint: str
    dimension: int
    embed: Callable[[Sequence[Path]], Iterable[NDArray[np.float32] | EmbedserveError]]


@click.command("embed")
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path), metavar="PATHS...")
@click.option(
    "-o",
    "--out",
    required=True,
    metavar="OUT",
    help="OUT.npy: float32 [N, D], and OUT.json beside it with the paths of the rows and the encoder."
    ' OUT.jsonl: path, vector and encoder on each line; "-" prints the same lines.',
)
@exclude_option
@server_option
@click.option(
    "--encoder",
    "encoder_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Embed in this process with an encoder file; no server is needed.",
)
@image_limit_options
def command(
    paths: tuple[Path, ...],
    out: str,
    exclude: tuple[str, ...],
    server: str,
    encoder_path: Path | None,
    limits: Limits,
) -> None:
    """Embed images: files, or all images in folders. A file that is given itself is never excluded.

    Files that cannot be used are named and skipped; the exit code is then 1.

    \b
    embedserve embed photos/ -o photos.npy
    embedserve embed photos/ -o photos.jsonl --encoder encoder.onnx
    embedserve embed query.jpg -o -
    """
    if out != "-" and Path(out).suffix not in (".npy", ".jsonl"):
        raise click.BadParameter(f"{out!r} is neither NAME.npy, NAME.jsonl nor -", param_hint="'-o'")

    from embedserve.cli.terminal.output import progress, rate_text, say, say_failed

    images, unreadable = _find(paths, exclude)
    begun = time.monotonic()
    failed: list[tuple[str, str, str]] = [(str(path), DataError.code, why) for path, why in unreadable]
    rows: list[NDArray[np.float32]] = []
    named: list[str] = []
    notes: list[str] = []
    try:
        with (
            _embedder(server, encoder_path, limits, notes) as embedder,
            _lines(out) as line,
            progress("embedding", len(images)) as bar,
        ):
            for path, result in zip(images, embedder.embed(images), strict=True):
                bar.advance()
                if isinstance(result, EmbedserveError):
                    failed.append((str(path), result.code, result.message.removeprefix(f"{path} ")))
                    continue
                named.append(path.as_posix())
                bar.note(f"{len(named) / (time.monotonic() - begun):.0f} images/s")
                if line is None:
                    rows.append(result)
                else:
                    line(path.as_posix(), result, embedder.fingerprint)
    except (EmbedserveError, KeyboardInterrupt):
        if named:
            kept = "" if out == "-" else "; nothing was written"
            rate = rate_text(len(named), time.monotonic() - begun)
            say(f"stopped: embedded {len(named)} of {len(images)}, {rate}{kept}")
        raise
    seconds = time.monotonic() - begun
    for name, _code, why in failed:
        say_failed(name, why)
    for note, count in Counter(notes).most_common():
        say(f"in {count} {'image' if count == 1 else 'images'}: {note}")
    if out.endswith(".npy"):
        _write_npy(Path(out), rows, named, failed, embedder)
    say(
        f"embedded {len(named)} of {len(named) + len(failed)} with {embedder.name} ({embedder.fingerprint[:12]}),"
        f" {embedder.dimension} numbers per image, {rate_text(len(named), seconds)}"
        + ("" if out == "-" else f", to {out}")
    )
    if failed:
        sys.exit(1)


def _find(paths: Sequence[Path], patterns: Sequence[str]) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The files to embed, each once, and folders that could not be read.

    Raises:
        DataError: a folder has no images.
    """
    from embedserve.cli.files import no_images, scan
    from embedserve.cli.terminal.exclude import Exclude, say_excluded

    exclude = Exclude(patterns)
    excluded: list[Path] = []
    images: dict[Path, None] = {}
    unreadable: list[tuple[Path, str]] = []
    for path in paths:
        if not path.is_dir():
            images[path] = None
            continue
        found = scan(path, exclude)
        if not found.images and not found.unreadable:
            raise no_images(path, found)
        images.update(dict.fromkeys(found.images))
        unreadable += found.unreadable
        excluded += found.excluded
    say_excluded(exclude, excluded)
    return list(images), unreadable


@contextmanager
def _embedder(server: str, encoder_path: Path | None, limits: Limits, notes: list[str]) -> Iterator[_Embedder]:
    if encoder_path is not None:
        from functools import partial

        from embedserve.encoder import offline
        from embedserve.encoder.session import Encoder, check_reference
        from embedserve.images.codec import read_file

        encoder = Encoder.open(encoder_path)
        check_reference(encoder)
        metadata = encoder.metadata
        yield _Embedder(
            metadata.name,
            encoder.fingerprint,
            metadata.dimension,
            lambda images: offline.embed(
                encoder, [partial(read_file, path, limits) for path in images], limits, notes=notes
            ),
        )
        return
    from embedserve.cli.terminal.options import connect

    with connect(server) as client:
        info = client.encoder()
        yield _Embedder(
            info.name,
            info.fingerprint,
            info.dimension,
            lambda images: client.embed_each(images, encoder_fingerprint=info.fingerprint),
        )


# --- Writing ---


@contextmanager
def _lines(out: str) -> Iterator[Callable[[str, NDArray[np.float32], str], None] | None]:
    """A function that writes one line for an image; None if the output is not lines."""
    from embedserve.atomic_write import atomic_write
    from embedserve.cli.terminal.output import print_json, shortest

    def document(path: str, vector: NDArray[np.float32], fingerprint: str) -> dict[str, Any]:
        return {"path": path, "vector": shortest(vector), "encoder_fingerprint": fingerprint}

    if out == "-":
        yield lambda *row: print_json(document(*row))
    elif out.endswith(".jsonl"):
        with atomic_write(Path(out), overwrite=True) as file:
            yield lambda *row: _write_json(file, document(*row))
    else:
        yield None


def _write_npy(
    out: Path,
    rows: Sequence[NDArray[np.float32]],
    named: Sequence[str],
    failed: Sequence[tuple[str, str, str]],
    embedder: _Embedder,
) -> None:
    import numpy as np

    from embedserve.atomic_write import atomic_write

    vectors = np.stack(rows) if rows else np.empty((0, embedder.dimension), dtype=np.float32)
    with atomic_write(out, overwrite=True) as file:
        np.save(file, vectors)
    encoder = {"name": embedder.name, "fingerprint": embedder.fingerprint, "dimension": embedder.dimension}
    failures = [{"path": path, "code": code, "error": why} for path, code, why in failed]
    with atomic_write(out.with_suffix(".json"), overwrite=True) as file:
        _write_json(file, {"encoder": encoder, "paths": named, "failed": failures})


def _write_json(file: IO[bytes], document: dict[str, Any]) -> None:
    import json

    file.write(json.dumps(document, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")

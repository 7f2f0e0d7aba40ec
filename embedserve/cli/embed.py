"""`embedserve embed`: files and folders → vectors, by a server or in this process."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from embedserve.cli.terminal.options import (
    exclude_option,
    existing_encoder,
    existing_images,
    image_limit_options,
    overwrite_option,
    server_option,
)
from embedserve.errors import DataError, EmbedserveError, InvalidInput

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
@click.argument("paths", nargs=-1, required=True, type=existing_images, metavar="PATHS...")
@click.option(
    "-o",
    "--out",
    required=True,
    metavar="OUT",
    help="OUT.npy: float32 [N, D], and OUT.json beside it with the paths of the rows and the encoder."
    ' OUT.jsonl: path, vector and encoder on each line; "-" prints the same lines.',
)
@overwrite_option
@exclude_option
@server_option
@click.option(
    "--encoder",
    "encoder_path",
    type=existing_encoder,
    metavar="FILE",
    help="Embed in this process with an encoder file; no server is needed.",
)
@image_limit_options
def command(
    paths: tuple[Path, ...],
    out: str,
    overwrite: bool,
    exclude: tuple[str, ...],
    server: str,
    encoder_path: Path | None,
    limits: Limits,
) -> None:
    """Embed images: files, or all images in folders. A file that is given itself is never excluded. @LIST stands for
    the files that LIST names, one on each line.

    Files that cannot be used are named and skipped; the exit code is then 1.

    \b
    embedserve embed photos/ -o photos.npy
    embedserve embed photos/ -o photos.jsonl --encoder encoder.onnx
    embedserve embed query.jpg -o -
    """
    if out != "-" and Path(out).suffix not in (".npy", ".jsonl"):
        raise click.BadParameter(f"{out!r} is neither NAME.npy, NAME.jsonl nor -", param_hint="'-o'")

    from embedserve.cli.terminal.output import progress, rate_text, say, say_failed

    _check_outputs(out, overwrite, [*paths, *([encoder_path] if encoder_path else [])])
    images, unreadable, passed_over = _find(paths, exclude)
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
        _write_npy(Path(out), rows, named, failed, passed_over, embedder)
    say(
        f"embedded {len(named)} of {len(named) + len(failed)} with {embedder.name} ({embedder.fingerprint[:12]}),"
        f" {embedder.dimension} numbers per image, {rate_text(len(named), seconds)}"
        + ("" if out == "-" else f", to {out}")
    )
    if failed:
        sys.exit(1)


def _find(
    paths: Sequence[Path], patterns: Sequence[str]
) -> tuple[list[Path], Sequence[tuple[Path, str]], Mapping[str, int]]:
    """The files to embed, each once; what could not be read, and why; and how many files of each kind are no images.

    Raises:
        DataError: a folder has no images.
    """
    from embedserve.cli.passed_over import say_left_out
    from embedserve.folder.exclude import Exclude
    from embedserve.folder.find import find

    exclude = Exclude(patterns)
    found = find(paths, exclude, files_too=True, unique=False)
    say_left_out(found, exclude)
    return list(dict.fromkeys(file.path for file in found.files)), found.unreadable, found.passed_over


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


def _check_outputs(out: str, overwrite: bool, inputs: Sequence[Path]) -> None:
    """Check that the files can be written, before anything is embedded.

    Raises:
        DataError: one exists and may not be replaced, or its folder does not exist or is not writable; or the file of
            paths beside a NAME.npy is one that this command did not write.
        InvalidInput: one is an image, a list or an encoder that is read.
    """
    from embedserve.atomic_write import check_writable

    if out == "-":
        return
    _check_not_read(Path(out), inputs)
    check_writable(Path(out), overwrite=overwrite)
    if out.endswith(".npy"):
        beside = Path(out).with_suffix(".json")
        _check_not_read(beside, inputs)
        check_writable(beside, overwrite=overwrite)
        if beside.exists() and not _is_ours(beside):
            raise DataError(
                f"{beside}, which would hold the paths of the rows, is another file", hint="choose another name: -o OUT"
            )


def _check_not_read(out: Path, inputs: Sequence[Path]) -> None:
    from embedserve.folder.list_file import list_file

    for given in inputs:
        read = list_file(given) or given
        if out.exists() and read.exists() and out.samefile(read):
            raise InvalidInput(f"{out} is read, and would be replaced", hint="choose another name: -o OUT")


def _is_ours(path: Path) -> bool:
    """Whether a file holds the paths of rows, as ``_write_npy`` writes them."""
    import json

    from embedserve.regular_file import read_text

    try:
        document = json.loads(read_text(path))
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and {"encoder", "paths", "failed"} == document.keys() - {"passed_over"}


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
    passed_over: Mapping[str, int],
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
        document = {"encoder": encoder, "paths": named, "failed": failures, "passed_over": passed_over}
        _write_json(file, document)


def _write_json(file: IO[bytes], document: dict[str, Any]) -> None:
    import json

    file.write(json.dumps(document, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")

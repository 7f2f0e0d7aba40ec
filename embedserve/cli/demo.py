"""`embedserve demo`: the whole path on real images, as the commands that a user would type."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from embedserve.cli.terminal.options import Finite, GivenPath, exclude_option, existing_folder
from embedserve.errors import DataError, EmbedserveError, SetupError

if TYPE_CHECKING:
    import subprocess

    from embedserve.client import Client

_MAX_ITEMS = 1000
"""Items whose neighbours are counted; the comparison of raw pixels grows with the square."""
_SHOWN_SEARCHES = 3


@click.command("demo")
@click.argument("folder", required=False, type=existing_folder)
@click.option(
    "-o",
    "--out",
    type=GivenPath(),
    help="Folder for everything it creates.  [default: demo, or demo-NAME]",
)
@exclude_option
@click.option("--minutes", default=3.0, type=Finite(min=0, min_open=True), help="Minutes of training.")
@click.option("--port", default=50051, type=click.IntRange(1, 65535), help="gRPC port of the server.")
@click.option("--fresh", is_flag=True, help="Start over even if there is a run already.")
@click.option("--once", is_flag=True, help="Stop at the end instead of serving.")
@click.pass_context
def command(
    context: click.Context,
    folder: Path | None,
    out: Path | None,
    exclude: tuple[str, ...],
    minutes: float,
    port: int,
    fresh: bool,
    once: bool,
) -> None:
    """Train, evaluate, export, serve, add and search: the whole path, on a sample or on your own FOLDER.

    Without a folder it runs on a sample of Fashion-MNIST: 3,000 images to train on and 1,000 to search in. Each step is
    the command that you would type, and is printed. Run again, it continues with what exists.

    \b
    embedserve demo
    embedserve demo photos/ --minutes 20 --once
    """
    from embedserve.cli.terminal.output import say

    if out is not None:
        _check_place(out)
    if folder is None:
        from embedserve.cli.sample import NAME, unpack

        name, out = NAME, out or Path("demo")
        train_folder, add_folder = unpack(out)
    else:
        name = folder.resolve().name
        out = out or Path(f"demo-{name}")
        train_folder = add_folder = folder
    from embedserve.encoder import encoder_file

    labelled = _has_labels(train_folder, exclude)
    left_out = [word for pattern in exclude for word in ("--exclude", pattern)]
    run, encoder, server = out / "runs" / name, out / "encoder.onnx", f"localhost:{port}"
    _check_port(port)
    _run("train", train_folder, "-o", run, "--minutes", f"{minutes:g}", *(["--fresh"] if fresh else []), *left_out)
    held_out: list[str | Path] = [] if folder else ["--test", add_folder]
    _run("evaluate", run, train_folder, *held_out, *left_out)
    _run("export", run, "-o", encoder, *(["--overwrite"] if encoder.exists() else []))
    # A collection for each encoder, and an alias for clients: a new encoder takes over at once.
    collection = f"{_as_collection_name(name)}-{encoder_file.read(encoder).fingerprint[:8]}"
    with _serving(encoder, out / "data", port) as process:
        _run("add", add_folder, "--collection", collection, "--server", server, *left_out)
        _run("collection", "set-alias", "demo", collection, "--server", server)
        from embedserve.client import Client

        with Client(server) as client:
            _show_searches(client, server, add_folder)
            if labelled:
                _show_agreement(client, encoder, add_folder)
        if once:
            return
        say(f"\nserving on {server}; Ctrl-C stops. In another terminal:")
        say(f"  embedserve search IMAGE --collection demo --server {server}")
        process.wait()
    context.exit(process.returncode)


def _check_place(out: Path) -> None:
    """Check that a folder is new, or one that this command has made.

    Raises:
        DataError: it holds something else.
    """
    from embedserve.cli.sample import NAME

    ours = {"runs", "encoder.onnx", "data", NAME, f".{NAME}.partial"}
    try:
        strangers = sorted(entry.name for entry in out.iterdir() if entry.name not in ours)
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(
            f"the folder {out} cannot be used: {error.strerror}", hint="choose another: -o FOLDER"
        ) from error
    if strangers:
        raise DataError(f"{out} holds what is not of a demo: {strangers[0]!r}", hint="choose a new folder: -o FOLDER")


def _as_collection_name(folder_name: str) -> str:
    """A name for a collection: letters, digits and ``._-``, short enough for the suffix that follows."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder_name).strip("._-")[:50] or "images"


def _check_port(port: int) -> None:
    """Check before the training that the port is free; another server may use it.

    Raises:
        SetupError: the port is taken.
    """
    import socket

    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise SetupError(f"port {port} is taken", hint=f"choose another: embedserve demo --port {port + 1}")


def _has_labels(folder: Path, exclude: Sequence[str]) -> bool:
    from embedserve.cli.training import training_installed

    with training_installed():
        from embedserve_training.data.folders import scan
    labels = scan(folder, exclude).labels
    return labels is not None and len(set(labels)) > 1


def _run(*words: str | Path) -> None:
    """Run an embedserve command as a user would.

    Raises:
        Exit: it failed, and has printed why.
    """
    import subprocess

    _announce(words)
    done = subprocess.run([sys.executable, "-m", "embedserve", *map(str, words)], check=False)
    if done.returncode:
        raise click.exceptions.Exit(done.returncode)


def _announce(words: Sequence[str | Path]) -> None:
    import shlex

    click.echo(f"\n{click.style('$ ' + shlex.join(['embedserve', *map(str, words)]), bold=True)}", err=True)


@contextmanager
def _serving(encoder: Path, data: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start a server, wait until it is ready, and stop it at the end."""
    import subprocess

    from embedserve.client import Client

    words: list[str | Path] = ["serve", encoder, "--data", data, "--port", str(port), "--no-http"]
    _announce(words)
    process = subprocess.Popen([sys.executable, "-m", "embedserve", *map(str, words)])
    try:
        with Client(f"localhost:{port}") as client:
            while True:
                try:
                    client.wait_ready(timeout_s=1)
                    ready = True
                except EmbedserveError:
                    ready = False
                if process.poll() is not None:  # another server may have answered
                    raise SetupError("the server did not start", hint="its error is printed above")
                if ready:
                    break
        yield process
    except KeyboardInterrupt:
        pass  # the server has received it as well, and drains
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()


def _show_searches(client: Client, server: str, folder: Path) -> None:
    items = [item.id for item in client.list_items("demo")]
    for item in items[:: max(len(items) // _SHOWN_SEARCHES, 1)][:_SHOWN_SEARCHES]:
        _run("search", folder / item, "--collection", "demo", "-k", "5", "--server", server)


def _show_agreement(client: Client, encoder: Path, folder: Path) -> None:
    """Share of the ten nearest neighbours with the query's label, beside that of raw pixels on the same images."""
    import numpy as np

    from embedserve.client import Query
    from embedserve.encoder import encoder_file
    from embedserve.images import preprocess
    from embedserve_training.evaluate import raw_pixels

    items = list(client.list_items("demo"))
    items = items[:: -(-len(items) // _MAX_ITEMS)]
    labels = np.array([str(item.metadata.get("label", "")) for item in items])
    shares = []
    for label, hits in zip(
        labels, client.search_many("demo", [Query(id=item.id) for item in items], k=10), strict=True
    ):
        assert not isinstance(hits, EmbedserveError)  # which search_many raises
        shares.append(np.mean([hit.metadata.get("label") == label for hit in hits]))
    spec = encoder_file.read(encoder).metadata.preprocess
    pixels = raw_pixels(np.stack([preprocess.load(spec, (folder / item.id).read_bytes()) for item in items]))
    cosines = pixels @ pixels.T
    np.fill_diagonal(cosines, -np.inf)
    nearest = np.argpartition(-cosines, 10, axis=1)[:, :10]
    raw = (labels[nearest] == labels[:, None]).mean()
    click.echo(f"\nsame label among the 10 nearest of {len(items)} images")
    click.echo(f"  embedserve  {100 * float(np.mean(shares)):5.1f} %")
    click.echo(f"  raw pixels  {100 * float(raw):5.1f} %")

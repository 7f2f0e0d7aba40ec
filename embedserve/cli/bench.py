"""`embedserve bench serve`: throughput and latency of a server under load."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedserve.cli.terminal.options import Finite, GivenPath, exclude_option, existing_images, server_option
from embedserve.errors import EmbedserveError, all_errors

if TYPE_CHECKING:
    from embedserve.client import Client
    from embedserve.client.access import Access
    from embedserve.loadtest import Measurements
    from embedserve.loadtest.loops import Watch
    from embedserve.loadtest.report import Report, Run
    from embedserve.loadtest.requests import Load
    from embedserve.loadtest.sweep import Plan

_INTERRUPTED = 130
_DEFAULT_CLIENTS = (1, 4, 16)


class _List(click.ParamType[Any]):
    """Values separated by commas, as in ``1,4,16``."""

    name = "list"

    def __init__(self, what: str, pattern: str) -> None:
        self._what, self._pattern = what, re.compile(pattern, re.IGNORECASE)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The words, each of which matches the pattern."""
        if not isinstance(value, str):
            return value
        words = [word.strip() for word in value.split(",")]
        for word in words:
            if not self._pattern.fullmatch(word):
                self.fail(f"{word!r} is not {self._what}", param, ctx)
        return tuple(words)


_CLIENTS = _List("a number of clients from 1 to 9999", "[1-9][0-9]{0,3}")
_RATES = _List("a rate, as in 200 or 80%", r"(?=.*[1-9])[0-9]{1,7}(\.[0-9]+)?%?")
_CODES = _List(
    "the code of an error, as in OVERLOADED",
    "|".join(sorted({kind.code for kind in all_errors()} | {"NOT_SENT", "UNANSWERED", "CANCELLED"})),
)


@click.group("bench")
def command() -> None:
    """Measure speed on your own machines.

    \b
    embedserve bench serve --server localhost:50051
    """


@command.command("serve")
@click.argument("paths", nargs=-1, type=existing_images, metavar="[IMAGES]...")
@exclude_option
@server_option
@click.option(
    "--clients",
    type=_CLIENTS,
    metavar="N,…",
    help="Closed loop: N clients, each of which makes its next call when the previous one is answered."
    " One run for each number. [default: 1,4,16, unless --rate gives numbers only]",
)
@click.option(
    "--rate",
    type=_RATES,
    metavar="R,…",
    help="Open loop: R images per second at random times, independent of the answers. 80% is a share of the highest"
    " rate of the closed loops, which run first. One run for each.",
)
@click.option("--seconds", default=10.0, type=Finite(0.1, 86_400), help="Length of each run.")
@click.option("--warmup-s", default=2.0, type=Finite(0, 3600), help="Seconds of load before each run.")
@click.option(
    "--per-call", default=1, type=click.IntRange(1, 10_000), help="Images in each call or message of a stream."
)
@click.option("--stream", is_flag=True, help="Send through EmbedStream, one stream on each connection.")
@click.option("--call", default="embed", type=click.Choice(["embed", "search", "upsert"]), help="Which call to make.")
@click.option("--collection", metavar="NAME", help="Collection to search, or to write to.")
@click.option("--vectors", is_flag=True, help="Search for, or write, random vectors instead of images.")
@click.option("-k", default=10, type=click.IntRange(1), help="Hits of each search.")
@click.option("--size", default="640x480", metavar="WxH", help="Size in pixels of the drawn images.")
@click.option("--sample", is_flag=True, help="Send the sample images (28 × 28) instead of drawn ones.")
@click.option("--connections", default=1, type=click.IntRange(1, 1000), help="TCP connections, used in rotation.")
@click.option("--timeout-s", default=30.0, type=Finite(0.001, 3600), help="Deadline of each call.")
@click.option(
    "--max-outstanding",
    default=1000,
    type=click.IntRange(1, 100_000),
    help="Limit on calls in flight in an open loop. Calls due beyond it are not sent, and counted as NOT_SENT.",
)
@click.option("--max-calls", default=2_000_000, type=click.IntRange(1), help="Limit on the calls of a run.")
@click.option("--seed", default=0, help="Seed of the times, drawn images and vectors.")
@click.option(
    "--allow",
    default=(),
    type=_CODES,
    metavar="CODE,…",
    help="Failures that do not change the exit code, as in OVERLOADED,DEADLINE_EXCEEDED.",
)
@click.option("--json", "json_out", metavar="FILE", help='Write everything measured as JSON; "-" prints it instead.')
@click.option(
    "--plot",
    type=GivenPath(dir_okay=False),
    metavar="FILE",
    help="Write a plot of the latencies, NAME.svg, or plot and table, NAME.html.",
)
@click.option("--overwrite", is_flag=True, help="Replace the files of --json and --plot if they exist.")
def serve(
    server: str,
    paths: tuple[Path, ...],
    exclude: tuple[str, ...],
    call: str,
    per_call: int,
    vectors: bool,
    sample: bool,
    size: str,
    collection: str | None,
    k: int,
    stream: bool,
    clients: tuple[str, ...] | None,
    rate: tuple[str, ...] | None,
    seed: int,
    allow: tuple[str, ...],
    json_out: str | None,
    plot: Path | None,
    overwrite: bool,
    **plan_options: Any,
) -> None:
    """Put load on a server, and measure its images per second and the latency of calls.

    IMAGES are files or folders; without them, JPEGs are drawn that take as long to decode as photographs. Closed loops
    measure the capacity of the server. Open loops measure the latency at a given rate, from when each call was due.
    Exits with 1 if a call failed with a code that --allow does not name.

    \b
    embedserve bench serve --server localhost:50051
    embedserve bench serve photos/ --clients 16 --per-call 8 --seconds 30
    embedserve bench serve --clients 16,64 --rate 50%,120% --allow OVERLOADED
    embedserve bench serve --rate 50%,80%,95% --plot latency.svg
    embedserve bench serve --call search --collection photos --rate 100
    """
    if plot is not None and plot.suffix not in (".svg", ".html"):
        raise click.BadParameter(f"{str(plot)!r} ends neither in .svg nor in .html", param_hint="'--plot'")
    if (call == "embed") == (collection is not None):
        raise click.UsageError(f"--call {call} {'takes no' if collection else 'needs'} --collection")
    if vectors and call == "embed":
        raise click.UsageError("--vectors needs --call search or --call upsert")
    if stream and call != "embed":
        raise click.UsageError(f"--stream sends to EmbedStream: no --call {call}")
    if sum([bool(paths), sample, vectors]) > 1:
        raise click.UsageError("give one of IMAGES, --sample and --vectors")

    from embedserve import loadtest
    from embedserve.atomic_write import check_writable
    from embedserve.cli import bench_inputs
    from embedserve.cli.terminal.options import connect, connection
    from embedserve.cli.terminal.output import say
    from embedserve.client.access import access
    from embedserve.client.target import addresses, is_this_machine
    from embedserve.loadtest.report import Report
    from embedserve.loadtest.sweep import Plan, Rate

    for path in (None if json_out in (None, "-") else json_out, plot):
        if path is not None:
            check_writable(Path(path), overwrite=overwrite)
    rates = [Rate.of(word) for word in rate or ()]
    if clients is None and (not rates or any(one.is_share for one in rates)):
        clients = tuple(map(str, _DEFAULT_CLIENTS))
    plan = Plan(
        clients=[int(word) for word in clients or ()],
        rates=rates,
        stream=stream,
        seed=seed,
        **plan_options,
    )
    inputs = bench_inputs.Inputs(
        call=call,
        per_call=per_call,
        stream=stream,
        paths=paths,
        exclude=exclude,
        sample=sample,
        size=size,
        vectors=vectors,
        collection=collection or "",
        k=k,
        seed=seed,
    )
    with connect(server) as client:
        info = client.server_info()
        say(f"server   {server}  {info.encoder.name} ({info.encoder.fingerprint[:12]})  {info.provider}")
        load, words = bench_inputs.ready(inputs, client)
        say(f"sending  {words}; {load.per_call} in each {call} call{', streamed' if stream else ''}")
        try:
            runs = loadtest.run(_runs(access(server, **connection()), load, plan))
        finally:
            if load.ids:
                _remove(client, inputs.collection, load.ids)
    report = Report(
        runs=runs,
        what=f"{call}{', streamed' if stream else f', {load.per_call} in each call' if load.per_call > 1 else ''}",
        inputs=words,
        server={"address": server, **asdict(info)},
        options={**asdict(inputs), **asdict(plan), "paths": [str(path) for path in paths]},
        allowed=frozenset(code.upper() for code in allow),
        same_machine=all(map(is_this_machine, addresses(server))),
    )
    _output(report, json_out, plot)
    sys.exit(_exit_code(report))


async def _runs(server: Access, load: Load, plan: Plan) -> list[Run]:
    """All runs; Ctrl-C ends them and keeps what was measured, and a second one ends the program."""
    import asyncio
    import signal

    from embedserve.loadtest.sweep import sweep

    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def interrupt() -> None:
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        return await sweep(server, load, plan, stop=stop, look=lambda name: _bar(name, plan))
    finally:
        loop.remove_signal_handler(signal.SIGINT)


@contextmanager
def _bar(name: str, plan: Plan) -> Iterator[Watch]:
    """A progress bar of the seconds of one run."""
    import time

    from embedserve.cli.terminal.output import progress

    total = max(1, round(plan.warmup_s + plan.seconds))
    begun, shown = time.monotonic(), 0
    with progress(f"{name}, seconds", total) as bar:

        def watch(measured: Measurements) -> None:
            nonlocal shown
            passed = min(total, int(time.monotonic() - begun))
            bar.advance(passed - shown)
            bar.note(f"{len(measured):,} calls")
            shown = passed

        yield watch
        bar.advance(total - shown)


def _remove(client: Client, collection: str, ids: Sequence[str]) -> None:
    """Delete the items that the runs wrote."""
    from embedserve.cli.terminal.output import say

    try:
        say(f"deleted the {client.delete_items(collection, ids):,} items that were written to {collection}")
    except EmbedserveError as error:
        say(f"the items written to {collection} were not deleted, {ids[0]} to {ids[-1]}: {error.message}")


# --- Output ---


def _output(report: Report, json_out: str | None, plot: Path | None) -> None:
    """Print and write the results."""
    from embedserve.cli.terminal.output import print_json, print_line
    from embedserve.cli.terminal.table import print_table

    if json_out == "-":
        print_json(report.document(["embedserve", *sys.argv[1:]]))
    elif report.runs:
        head, rows = report.table()
        print_table(head, rows, right=range(1, len(head)))
        if report.errors():
            print_table(*report.error_table(), right=(2, 3, 4, 5))
        for verdict in report.verdicts():
            print_line(verdict)
    if json_out is not None and json_out != "-":
        import json

        document = report.document(["embedserve", *sys.argv[1:]])
        _write(Path(json_out), json.dumps(document, ensure_ascii=False, indent=1) + "\n")
    if plot is not None:
        _write(plot, report.svg() if plot.suffix == ".svg" else report.html())


def _exit_code(report: Report) -> int:
    """The exit code; prints the reason if it is not 0."""
    from embedserve.cli.terminal.output import say

    if report.interrupted:
        say("interrupted: the last run is shorter than requested")
        return _INTERRUPTED
    failed = report.not_allowed()
    if failed:
        names = ", ".join(f"{count:,} with {code}" for code, count in failed.items())
        say(f"calls failed: {names}; the exit code is 1 unless --allow {','.join(failed)} accepts them")
    return 1 if failed else 0


def _write(path: Path, text: str) -> None:
    """Write a result to a file.

    Raises:
        DataError: the file cannot be written.
    """
    from embedserve.atomic_write import atomic_write
    from embedserve.cli.terminal.output import say

    with atomic_write(path, overwrite=True) as file:  # whether it may be replaced was checked before
        file.write(text.encode("utf-8", "backslashreplace"))
    say(f"wrote {path}")

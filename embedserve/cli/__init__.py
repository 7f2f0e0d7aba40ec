"""The command line: parse, call, print. A module or folder for each command; slow imports wait until it runs."""

from __future__ import annotations

import errno
import os
import sys

import click

import embedserve
from embedserve.cli.terminal.usage import Group, sentence_and_hint
from embedserve.cores import limit_libraries
from embedserve.errors import EmbedserveError

_CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "auto_envvar_prefix": "EMBEDSERVE",
    "show_default": True,
    "max_content_width": 100,
}


@click.group(cls=Group, context_settings=_CONTEXT)
@click.version_option(embedserve.__version__, "--version", prog_name="embedserve", message="%(prog)s %(version)s")
def main() -> None:
    """Train an image encoder on your own unlabelled images and serve it.

    \b
    embedserve train photos/ -o runs/photos     learn from a folder of images
    embedserve export runs/photos               one verified, self-describing file
    embedserve serve encoder.onnx --data data/  embeddings and search over gRPC
    embedserve add photos/ --collection photos
    embedserve search query.jpg --collection photos
    """


def run() -> None:
    """Entry point: ``main``, with every error as one sentence and an exit code.

    Exit codes: 0 done, 1 failed, 2 wrong usage or bad input, 130 interrupted.
    """
    limit_libraries()
    try:
        # With standalone_mode=False click returns the code of an Exit instead of ending the process.
        sys.exit(main.main(prog_name="embedserve", standalone_mode=False))
    except EmbedserveError as error:
        _print_error(error.message, error.hint)
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            error.show()
        else:
            _print_error(*sentence_and_hint(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
            _drop_output()
            _print_error(f"the output cannot be written: {error.strerror}", "free space, or send it elsewhere")
            sys.exit(1)
        if os.environ.get("EMBEDSERVE_DEBUG"):
            import traceback

            traceback.print_exc()
        _print_error(
            f"this is a bug in embedserve: {type(error).__name__}: {error}",
            "EMBEDSERVE_DEBUG=1 prints the traceback; please report it with the output of: embedserve doctor",
        )
        sys.exit(1)


def _drop_output() -> None:
    """Let the end of the process not try once more to write what could not be written."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _print_error(message: str, hint: str) -> None:
    click.echo(f"{click.style('error:', fg='red', bold=True)} {message}", err=True)
    hint = getattr(hint, "on_command_line", hint)  # the client's hints know both ways of writing
    if hint:
        click.echo(f"{click.style('hint:', bold=True)}  {hint}", err=True)


def _add_commands() -> None:
    # Modules of commands import only click and light modules at their top; subcommands of `collection` come later.
    from embedserve.cli import (
        add,
        bench,
        collection,
        completion,
        demo,
        doctor,
        embed,
        evaluate,
        export,
        preview,
        reload,
        search,
        serve,
        train,
    )

    for module in (
        preview,
        train,
        evaluate,
        export,
        serve,
        reload,
        embed,
        add,
        search,
        collection,
        bench,
        doctor,
        demo,
        completion,
    ):
        main.add_command(module.command)


_add_commands()

"""Write docs/cli.md, every command and option of the command line, from the commands themselves.

    python scripts/cli_doc.py                 write it into this repository
    python scripts/cli_doc.py --out FILE      write it elsewhere, as the test does that compares both

Made from click's objects and not from the output of `--help`, which is wrapped and differs between versions of click.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from embedserve.cli import main as cli
from embedserve.cli.collection import RENAMED

OUT = Path(__file__).resolve().parents[1] / "docs/cli.md"
HEADER = """\
# The command line

Generated from the help texts of the commands by `python scripts/cli_doc.py`; change those, not this page.
`embedserve COMMAND --help` shows the same.

Results are printed on standard output, everything else on standard error. An error is one sentence, with a hint
about what to do, and the exit code says of which kind it was:

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed: no server answers, files were left out, a check failed, an answer to a question was no, a bug |
| 2 | wrong usage or bad input: an option, a value, a path of the wrong kind, a file that is no encoder |
| 130 | interrupted by Ctrl-C; `train` left a checkpoint |

Every option can also be set by an environment variable: `EMBEDSERVE_`, the command and the option in capitals, with `_`
for spaces and hyphens, as in `EMBEDSERVE_SERVE_PORT` for `embedserve serve --port`. Options that several commands share
have a shorter one, named below. A flag on the command line overrides it. `EMBEDSERVE_DEBUG=1` prints the traceback of a
bug.
"""
NOT_RUN = "<!-- not run: examples with your own files -->"


def main() -> None:
    """Parse the arguments and write."""
    parser = argparse.ArgumentParser(description="Write docs/cli.md from the commands.")
    parser.add_argument("--out", type=Path, default=OUT, help="file to write (docs/cli.md)")
    parser.parse_args().out.write_text(render(cli), encoding="utf-8")


def render(root: click.Command) -> str:
    """The whole page, in Markdown."""
    commands = [(name, command) for name, command in walk(root, "embedserve") if command is not root]
    overview = ["| command | what it does |", "|---|---|"]
    overview += [f"| [`{name}`](#{anchor(name)}) | {first_sentence(command)} |" for name, command in commands]
    sections = [HEADER, "\n".join(overview) + "\n", *renamed()]
    sections += ["\n".join(section(name, command)) for name, command in commands]
    return "\n".join(sections)


def walk(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """A command and its subcommands, each with its full name, in the order in which they were added."""
    yield name, command
    if isinstance(command, click.Group):
        for short, child in command.commands.items():
            if not child.hidden:
                yield from walk(child, f"{name} {short}")


def renamed() -> Iterator[str]:
    """The old names of commands, with the new ones."""
    yield "Old names still work in this release, with a warning on standard error:\n\n| old name | |\n|---|---|"
    for old, new in RENAMED.items():
        yield f"| `embedserve collection {old}` | Use `embedserve collection {new}`. |"
    yield ""


def section(name: str, command: click.Command) -> Iterator[str]:
    """One command."""
    yield f"## {name}\n"
    arguments = [entry for entry in command.params if isinstance(entry, click.Argument)]
    options = [entry for entry in command.params if isinstance(entry, click.Option) and not entry.hidden]
    parts = [name, *["[OPTIONS]"] * bool(options), *map(argument_text, arguments)]
    if isinstance(command, click.Group):
        parts.append("COMMAND")
    yield f"Usage: `{' '.join(parts)}`\n"
    for paragraph, is_example in paragraphs(command):
        yield f"{NOT_RUN}\n```shell\n{paragraph}\n```\n" if is_example else f"{paragraph}\n"
    if options:
        yield "| option | meaning |\n|---|---|"
        yield from (f"| {option_text(option)} | {cell(meaning(option))} |" for option in options)
        yield ""


def paragraphs(command: click.Command) -> Iterator[tuple[str, bool]]:
    """The paragraphs of the help text, and whether each is an example, which keeps its lines."""
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if paragraph.startswith("\b"):
            yield paragraph.removeprefix("\b\n"), True
        else:
            yield " ".join(paragraph.split()), False


def examples(command: click.Command) -> list[str]:
    """The commands in the examples of the help text, without their explanations."""
    blocks = [text for text, is_example in paragraphs(command) if is_example]
    return [line.split("  ")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def first_sentence(command: click.Command) -> str:
    """The first sentence of the help text."""
    text, _ = next(paragraphs(command))
    return cell(text.split(". ")[0].split("; ")[0].rstrip(".:"))


def argument_text(argument: click.Argument) -> str:
    """An argument as in the usage line."""
    name = (argument.metavar or (argument.name or "").upper()).removesuffix("...").strip("[]")
    repeated = "..." if argument.nargs == -1 else ""
    return f"{name}{repeated}" if argument.required else f"[{name}]{repeated}"


def option_text(option: click.Option) -> str:
    """The names of an option and its value."""
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    value = "" if option.is_flag or option.count else f" {cell(value_text(option))}"
    return names + value


def value_text(option: click.Option) -> str:
    """The value of an option: its metavar, choices, range or type."""
    if option.metavar:
        return option.metavar
    kind = option.type
    if isinstance(kind, click.Choice):
        return " \\| ".join(map(str, kind.choices))
    if isinstance(kind, (click.IntRange, click.FloatRange)):
        bounds = [kind.min, kind.max]
        low, high = ("" if bound is None else f"{bound:g}" for bound in bounds)
        return f"{low}–{high}" if low and high else f"≥ {low}" if low else f"≤ {high}" if high else "NUMBER"
    return {"integer": "INTEGER", "float": "NUMBER", "path": "PATH"}.get(kind.name, "TEXT")


def meaning(option: click.Option) -> str:
    """The help of an option, with its default and its environment variable."""
    text = " ".join((option.help or "").split())
    notes = [*["required"] * option.required, *["may be repeated"] * option.multiple]
    default = plain_default(option)
    if default:
        notes.append(f"default `{default}`")
    if option.envvar:
        notes.append(f"or environment variable `{option.envvar}`")
    return f"{text} ({'; '.join(notes)})" if notes else text


def plain_default(option: click.Option) -> str:
    """The default of an option as it would be typed; empty if there is none."""
    value: Any = option.default
    if option.secondary_opts:
        return (option.opts if value else option.secondary_opts)[0]
    if option.is_flag or isinstance(value, bool) or not isinstance(value, (str, int, float, Path)):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def anchor(heading: str) -> str:
    """The anchor of a heading."""
    return heading.lower().replace(" ", "-")


def cell(text: str) -> str:
    """Text escaped for a table cell."""
    return text.replace("\\|", "|").replace("|", "\\|")


if __name__ == "__main__":
    main()

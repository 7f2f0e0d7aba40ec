"""Which files and folders inside a folder are left out: ``--exclude`` and its patterns.

A pattern is matched with the path relative to the folder, as in a .gitignore file: one without a slash with every file
and folder of that name at any depth, one with a slash from the folder on. ``*`` and ``?`` stand for characters but no
slash, ``[a-c]`` for one of them, ``[!a-c]`` or ``[^a-c]`` for any other, and ``**`` for any number of folders; at the
end ``**`` stands for all that is inside. With a slash at its end it is for folders only. An excluded folder is not
read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePath

from embedserve.errors import InvalidInput


@dataclass(frozen=True)
class _Pattern:
    text: str
    parts: tuple[str, ...]
    only_folders: bool


class Exclude:
    """The patterns of one command.

    Args:
        patterns: as typed.

    Raises:
        InvalidInput: a pattern cannot match anything, or means something else in a .gitignore file.
    """

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        self._patterns = [_parse(text) for text in patterns]
        self._used: set[str] = set()

    def __call__(self, relative: PurePath, *, is_folder: bool) -> bool:
        """Whether a file or folder is left out."""
        matching = [
            pattern.text
            for pattern in self._patterns
            if (is_folder or not pattern.only_folders) and _matches(relative.parts, pattern.parts)
        ]
        self._used.update(matching)
        return bool(matching)

    @property
    def unused(self) -> list[str]:
        """Patterns that nothing has matched so far."""
        return [pattern.text for pattern in self._patterns if pattern.text not in self._used]


def _parse(text: str) -> _Pattern:
    parts = [part for part in text.removeprefix("./").split("/") if part]
    if not parts:
        raise InvalidInput(f"{text!r} is not a pattern", hint="write a name, as in '*.gif', or a path, as in 'a/b/*'")
    if text.startswith("!"):
        raise InvalidInput(
            f"{text!r} would include what another pattern excludes, which is not possible",
            hint="for a name that begins with '!' write '[!]'",
        )
    if "\\" in text or ".." in parts or "." in parts:
        raise InvalidInput(
            f"{text!r} is not a pattern: paths are relative to the folder, with forward slashes and without '.' and"
            " '..'",
            hint="write a name, as in '*.gif', or a path, as in 'a/b/*'",
        )
    if "[:" in text:
        raise InvalidInput(f"{text!r} has a class of characters by name", hint="write the characters, as in '[0-9]'")
    if parts[-1] == "**":
        parts.append("*")  # what is inside, and not a file of the name before it
    # A set of other characters begins with ^ or with !; fnmatch knows only the second.
    parts = [part.replace("[^", "[!") for part in parts]
    is_anywhere = "/" not in text.rstrip("/")
    return _Pattern(text, ("**", *parts) if is_anywhere else tuple(parts), text.endswith("/"))


def _matches(path: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a pattern match all parts of a path."""
    reached = {0}  # positions in the path up to which the pattern so far can match
    for part in pattern:
        if part == "**":
            reached = set(range(min(reached), len(path) + 1))
        else:
            reached = {at + 1 for at in reached if at < len(path) and fnmatchcase(path[at], part)}
        if not reached:
            return False
    return len(path) in reached

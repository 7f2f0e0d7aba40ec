"""What a misspelt name probably means: one way for settings, choices, keys, columns and limits."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The most similar of the known names, whatever their case; None if none is similar."""
    import difflib

    folded = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(word.casefold(), folded, 1)
    return folded[close[0]] if close else None


def meant(word: str, known: Iterable[str], otherwise: str) -> str:
    """A hint: the most similar name as a question, and what is said otherwise; only the latter if none is similar."""
    close = nearest(word, known)
    return f"did you mean {close}? {otherwise}" if close else otherwise

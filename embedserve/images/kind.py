"""What a kind of file is called, and what to do with one that is not read."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec

SAVE = "save it as PNG or JPEG"


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of file, recognised by its content."""

    name: str
    """As in "HEIC" or "PDF"."""
    phrase: str = ""
    """What a sentence calls it, as in "a PDF document"; the name by default."""
    suffixes: tuple[str, ...] = ()
    """Suffixes of such files, the usual one first."""
    remedy: str = ""
    """What to do with a file that is not read."""
    media_type: str = "application/octet-stream"
    package: str = ""
    """The package, beyond those that are always there, that reading it needs; its import name."""
    extra: str = ""
    """The extra of embedserve that brings the package."""
    damaged: bool = False
    """Whether such a file is an image that was damaged on its way."""
    supported: bool = field(default=False, repr=False)

    @property
    def readable(self) -> bool:
        """Whether it is read here."""
        return self.supported and (not self.package or installed(self.package))


@cache
def installed(package: str) -> bool:
    """Whether a package can be imported; it is not."""
    return find_spec(package) is not None

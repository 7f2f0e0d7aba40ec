"""Bearer tokens from a file: who may call, and in which role.

# role  token                              name in the log
read    f0nZl3…                            website
write   9b1c4e…                            importer
"""

from __future__ import annotations

import hmac
import logging
import re
import stat
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from pathlib import Path

from embedserve.errors import SetupError
from embedserve.regular_file import read_text
from embedserve.server.access.reload_files import file_state

MIN_TOKEN_CHARS = 16
MAX_TOKEN_CHARS = 1024
"""gRPC accepts 8 KiB of headers with a call."""

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, b64token
_MAKE_ONE = "make one: openssl rand -hex 32"
_log = logging.getLogger("embedserve.server")


class Role(StrEnum):
    """What a token allows. Writing includes reading."""

    READ = "read"
    WRITE = "write"

    def covers(self, needed: Role) -> bool:
        """Whether this role allows what needs the other."""
        return self is Role.WRITE or needed is Role.READ


@dataclass(frozen=True, slots=True)
class Caller:
    """The owner of a token. The token itself is not kept."""

    name: str
    role: Role
    digest: bytes
    """SHA-256 of the token."""


class TokenFile:
    """The tokens of a file, read again when it changes.

    Raises:
        SetupError: the file cannot be used; says in which line and why, without quoting a token.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state = file_state(path)
        self._callers = self._read()

    def __len__(self) -> int:
        return len(self._callers)

    def refresh(self) -> None:
        """Read the file again if it changed. A file that cannot be used changes nothing and is logged, once."""
        state = file_state(self._path)
        if state == self._state:
            return
        self._state = state
        try:
            self._callers = self._read()
        except SetupError as error:
            _log.error("the old tokens stay in use: %s", error.message)
            return
        _log.warning("tokens reloaded from %s: %d", self._path, len(self._callers))

    def find(self, token: str) -> Caller | None:
        """The owner of a token; None if it is unknown. The time taken does not depend on how close a guess is."""
        digest = sha256(token.encode("utf-8", "replace")).digest()
        found = None
        for caller in self._callers:
            if hmac.compare_digest(digest, caller.digest):
                found = caller
        return found

    def find_bearer(self, authorization: str) -> Caller | None:
        """The owner of the token in an ``authorization`` header; None if there is none, or it is unknown."""
        scheme, _, token = authorization.partition(" ")
        return self.find(token.strip()) if scheme.lower() == "bearer" else None

    def _read(self) -> tuple[Caller, ...]:
        try:
            text = read_text(self._path)
            mode = self._path.stat().st_mode
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise SetupError(
                f"the tokens {self._path} cannot be read: {why}", hint="check the path and its permissions"
            ) from error
        callers = _parse(text, self._path)
        if mode & stat.S_IROTH:
            _log.warning("every user of this machine can read the tokens: chmod o-r %s", self._path)
        return callers


def _parse(text: str, path: Path) -> tuple[Caller, ...]:
    callers: dict[bytes, Caller] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        where = f"{path}, line {number}"
        if words[0] not in list(Role):
            raise SetupError(f"{where} begins with no role", hint="write: read TOKEN [NAME] or write TOKEN [NAME]")
        if len(words) not in (2, 3):
            raise SetupError(
                f"{where} has {len(words)} words", hint="write: ROLE TOKEN, or ROLE TOKEN NAME with a name of one word"
            )
        token = words[1]
        if not MIN_TOKEN_CHARS <= len(token) <= MAX_TOKEN_CHARS:
            raise SetupError(
                f"{where} has a token of {len(token)} characters; {MIN_TOKEN_CHARS} to {MAX_TOKEN_CHARS} are allowed",
                hint=_MAKE_ONE,
            )
        if not _TOKEN.fullmatch(token):
            raise SetupError(
                f"{where} has a token with characters that HTTP does not allow",
                hint=f"letters, digits and -._~+/ are allowed, with = at the end; {_MAKE_ONE}",
            )
        digest = sha256(token.encode()).digest()
        if digest in callers:
            raise SetupError(f"{where} repeats the token of {callers[digest].name}", hint=_MAKE_ONE)
        name = words[2] if len(words) == 3 else f"line {number}"
        callers[digest] = Caller(name, Role(words[0]), digest)
    if not callers:
        raise SetupError(f"{path} has no tokens: no call would be allowed", hint=f"add: write TOKEN NAME; {_MAKE_ONE}")
    return tuple(callers.values())

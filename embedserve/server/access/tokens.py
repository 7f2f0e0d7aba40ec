"""Bearer tokens from a file: who may call, and in which role.

# role  token                              name in the log
read    f0nZl3…                            website
write   9b1c4e…                            importer
"""

from __future__ import annotations

import errno
import hmac
import logging
import os
import re
import stat
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from pathlib import Path

from embedserve.errors import SetupError
from embedserve.regular_file import regular
from embedserve.server.access.reload_files import file_state

MIN_TOKEN_CHARS = 16
MAX_TOKEN_CHARS = 1024
"""gRPC accepts 8 KiB of headers with a call."""

_MAX_FILE_BYTES = 16 << 20

_REVOKING = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP),
    *(errno.EINVAL, errno.ENXIO, errno.EISDIR),  # a pipe, a socket or a folder, as ``regular`` says it
)
"""Why a file is not read that somebody has brought about: it was removed, or is no longer for the server to read."""

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, b64token
_MAKE_ONE = "make one: openssl rand -hex 32"
_CHECK = "check the path and its permissions"
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

    While the server runs, callers are known by the file as it is: one that is no longer in it is not known any more,
    whatever else the file holds. A file that was removed or emptied knows nobody, and a line with a mistake grants
    nothing. Such a file may be one that is being written, so it counts only if the next check finds it the same. A file
    that the disk does not give (an I/O error) says nothing about callers, and changes nothing.

    Raises:
        SetupError: at the start, the file cannot be used; says in which line and why, without quoting a token.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state = file_state(path)
        self._suspect: tuple[object, ...] | None = None
        self._is_failing = False
        try:
            callers, problem = self._read()
        except OSError as error:
            raise _unreadable(path, error) from error
        if problem is not None:
            raise problem
        self._callers = callers

    def __len__(self) -> int:
        return len(self._callers)

    def refresh(self) -> None:
        """Read the file again if it changed, and log what it grants now."""
        state = file_state(self._path)
        if state == self._state:
            return
        fields: dict[str, object] = {"path": str(self._path)}
        try:
            callers, problem = self._read()
        except OSError as error:
            fields |= {"reason": error.strerror, "tokens": len(self._callers)}
            if not self._is_failing:
                _log.error("the tokens cannot be read; those known so far stay valid", extra={"fields": fields})
            self._is_failing = True
            return
        self._is_failing = False
        if problem is not None and state != self._suspect:
            self._suspect = state
            return
        self._state, self._suspect = state, None
        digests = {caller.digest for caller in callers}
        fields |= {"tokens": len(callers), "revoked": sum(old.digest not in digests for old in self._callers)}
        self._callers = callers
        if problem is None:
            _log.warning("tokens reloaded", extra={"fields": fields})
        elif not callers:
            fields["reason"] = problem.message
            _log.error("all tokens are revoked: every call is refused", extra={"fields": fields})
        else:
            fields["reason"] = problem.message
            _log.error("tokens reloaded; lines with a mistake grant nothing", extra={"fields": fields})

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

    def _read(self) -> tuple[tuple[Caller, ...], SetupError | None]:
        """The callers in the file, and what is wrong with it, if anything.

        Raises:
            OSError: the disk does not give the file.
        """
        try:
            with open(self._path, encoding="utf-8", opener=regular) as file:
                status = os.fstat(file.fileno())
                if status.st_size > _MAX_FILE_BYTES:
                    problem = (
                        f"the tokens {self._path} have {status.st_size} bytes; at most {_MAX_FILE_BYTES} are allowed"
                    )
                    return (), SetupError(problem, hint=_MAKE_ONE)
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and error.errno not in _REVOKING:
                raise
            return (), _unreadable(self._path, error)
        if status.st_mode & stat.S_IROTH:
            hint = f"chmod o-r {self._path}"
            _log.warning("every user of this machine can read the tokens", extra={"fields": {"hint": hint}})
        return _parse(text, self._path)


def _unreadable(path: Path, error: Exception) -> SetupError:
    return SetupError(f"the tokens {path} cannot be read: {getattr(error, 'strerror', None) or error}", hint=_CHECK)


def _parse(text: str, path: Path) -> tuple[tuple[Caller, ...], SetupError | None]:
    """The callers in the lines that can be used, and the first mistake."""
    callers: dict[bytes, Caller] = {}
    problem: SetupError | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            caller = _caller(words, number, f"{path}, line {number}")
            if caller.digest in callers:
                raise SetupError(
                    f"{path}, line {number} repeats the token of {callers[caller.digest].name}", hint=_MAKE_ONE
                )
        except SetupError as error:
            problem = problem or error
        else:
            callers[caller.digest] = caller
    if not callers and problem is None:
        problem = SetupError(
            f"{path} has no tokens: no call would be allowed", hint=f"add: write TOKEN NAME; {_MAKE_ONE}"
        )
    return tuple(callers.values()), problem


def _caller(words: list[str], number: int, where: str) -> Caller:
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
    name = words[2] if len(words) == 3 else f"line {number}"
    return Caller(name, Role(words[0]), sha256(token.encode()).digest())

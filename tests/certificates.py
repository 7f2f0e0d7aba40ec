"""Certificates for tests: of a trusted authority, of an unknown one, expired, and for another name."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme

_NOW = datetime.datetime.now(datetime.UTC)
_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """The files of a certificate and its key."""

    certificate: Path
    key: Path

    @property
    def server(self) -> dict[str, Any]:
        """Fields of ServerConfig."""
        return {"tls_cert": self.certificate, "tls_key": self.key}

    @property
    def client(self) -> dict[str, Any]:
        """Arguments of a client."""
        return {"client_cert": self.certificate, "client_key": self.key}

    def become(self, other: Pair) -> None:
        """Take the content of another pair, as a renewal does: one file after the other."""
        for mine, theirs in ((self.certificate, other.certificate), (self.key, other.key)):
            new = mine.with_name(f"{mine.name}.new")
            new.write_bytes(theirs.read_bytes())
            new.replace(mine)


class Authority:
    """A CA that writes its certificates into a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._ca = trustme.CA()
        self._folder, self._name, self._issued = folder, name, 0
        self.file = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(self.file)

    def issue(self, *names: str, expired: bool = False, early: bool = False) -> Pair:
        """A certificate for names and addresses, by default localhost; an ``early`` one is valid from tomorrow."""
        first_day, last_day = (-9, -1) if expired else (1, 9) if early else (-9, 30)
        issued = self._ca.issue_cert(
            *(names or ("localhost", "127.0.0.1")),
            not_before=_NOW + first_day * _DAY,
            not_after=_NOW + last_day * _DAY,
        )
        self._issued += 1
        pair = Pair(*(self._folder / f"{self._name}-{self._issued}-{kind}.pem" for kind in ("certificate", "key")))
        pair.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(pair.key)
        return pair

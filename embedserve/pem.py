"""Certificates and keys in PEM files: read, and checked so that an error says what is wrong, which gRPC's do not."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from embedserve.errors import SetupError
from embedserve.regular_file import read_bytes


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate with its chain, and its private key."""

    certificate: bytes
    key: bytes = field(repr=False)


def read_certificates(path: Path, what: str) -> bytes:
    """The PEM text of one or more certificates.

    Args:
        path: the file.
        what: its name in messages, as in "the certificate".

    Raises:
        SetupError: it cannot be read, or holds no certificate.
    """
    data = _read(path, what)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=data.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError) as error:
        raise SetupError(
            f"{what} {path} is not a PEM certificate", hint="it must begin with -----BEGIN CERTIFICATE-----"
        ) from error
    return data


def read_pair(certificate: Path, key: Path) -> KeyPair:
    """A certificate and the private key that belongs to it.

    Raises:
        SetupError: one of them cannot be read or is not in PEM, the key has a password, or they do not belong
            together.
    """
    pair = KeyPair(read_certificates(certificate, "the certificate"), _read(key, "the private key"))
    if b"PRIVATE KEY-----" not in pair.key:
        raise SetupError(
            f"the private key {key} is not a PEM key", hint="it must have a line -----BEGIN PRIVATE KEY-----"
        )
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=_no_password)
    except _PasswordAsked as error:
        raise SetupError(
            f"the private key {key} is protected by a password",
            hint=f"remove it, since it cannot be entered at start: openssl pkey -in {key} -out key.pem",
        ) from error
    except (ssl.SSLError, OSError) as error:
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            raise SetupError(
                f"the private key {key} does not belong to the certificate {certificate}",
                hint="give the two files that were made together; in a chain, the server's own certificate comes first",
            ) from error
        raise SetupError(f"the private key {key} cannot be used with {certificate}: {error}") from error
    if pair != KeyPair(_read(certificate, "the certificate"), _read(key, "the private key")):
        # The files that were checked are not those that were read.
        raise SetupError(f"{certificate} and {key} are being replaced right now", hint="try again")
    return pair


def _read(path: Path, what: str) -> bytes:
    try:
        return read_bytes(path)
    except OSError as error:
        raise SetupError(
            f"{what} {path} cannot be read: {error.strerror or error}", hint="check the path and its permissions"
        ) from error


class _PasswordAsked(Exception):
    """OpenSSL asked for a password."""


def _no_password() -> str:
    raise _PasswordAsked

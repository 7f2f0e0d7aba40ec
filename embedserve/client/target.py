"""The addresses of a client: HOST:PORT as people write it, checked, and as gRPC takes it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from embedserve.client.hints import Hint
from embedserve.errors import InvalidInput

DEFAULT_PORT = 50051

Target = str | Sequence[str]
"""HOST:PORT of a server, or of several that share the calls: a list, or one string with commas."""

_EXAMPLE = "write HOST:PORT, as in localhost:50051 or [::1]:50051"
_AS_IT_IS = ("unix:", "unix-abstract:", "vsock:", "ipv4:", "ipv6:", "xds:")
"""Addresses that gRPC takes, and that we do not take apart."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?")
_EVERYWHERE = ("0.0.0.0", "::")
"""Where a server listens, printed by it; a client on its machine means this machine."""


def addresses(target: Target) -> tuple[str, ...]:
    """Each address with our port where it names none, as gRPC takes it; gRPC itself would take port 443.

    Raises:
        InvalidInput: an address is none; says what to write.
    """
    if isinstance(target, str):
        text = target.strip()
        parts: Sequence[object] = [text] if text.startswith(_AS_IT_IS) else text.split(",")
    elif isinstance(target, Sequence) and not isinstance(target, (bytes, bytearray, memoryview)):
        parts = target
    else:
        parts = [target]
    if not parts:
        raise InvalidInput("no server is named: the list of addresses is empty", hint=_EXAMPLE)
    found = [_address(part) for part in parts]
    if len(set(found)) < len(found):
        twice = next(one for one in found if found.count(one) > 1)
        raise InvalidInput(f"the address {twice} is given twice", hint="name each server once")
    return tuple(found)


def address(target: Target) -> str:
    """``addresses`` as one text, for messages and for a single server."""
    return ", ".join(addresses(target))


def is_this_machine(target: str) -> bool:
    """Whether what is sent to the target never leaves this machine."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    found = re.sub(r"^(ipv4|ipv6|dns):(//[^/]*/)?", "", target).split(",")
    return all(_is_loopback(re.sub(r":\d+$", "", one.strip()).strip("[]")) for one in found)


def host_and_port(host: str, port: int) -> str:
    """HOST:PORT as ``addresses`` takes it: with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def _address(part: object) -> str:
    if not isinstance(part, str):
        raise InvalidInput(f"an address is a str, not a {type(part).__name__}: {part!r}", hint=_EXAMPLE)
    text = part.strip()
    if not text:
        raise InvalidInput("the address is empty", hint=_EXAMPLE)
    if "@" in text and not text.startswith(_AS_IT_IS):
        # Quotes nothing: what stands before the @ is a password.
        raise InvalidInput(
            "the address has a user or password before its @",
            hint=Hint(
                "write HOST:PORT alone; a token is given as Client(…, token=…)",
                "write HOST:PORT alone; a token is given as --token-file FILE",
            ),
        )
    if text.startswith(_AS_IT_IS):
        if not text.partition(":")[2].strip("/"):
            raise InvalidInput(f"the address {text!r} names nothing", hint="write unix:/path/of/the/socket")
        return text
    prefix = ""
    if found := _SCHEME.fullmatch(text):
        prefix, text = _prefix(found[1].lower(), found[2], part)
    elif text.startswith("dns:"):
        prefix, text = "dns:", text.removeprefix("dns:")
    text = text.removesuffix("/")
    if "/" in text:
        start = "a socket is written unix:/path" if text.startswith(("/", ".")) else "leave out what follows the port"
        raise InvalidInput(f"the address {part!r} has a path", hint=f"{_EXAMPLE}; {start}")
    host, port = _split(text, part)
    if not prefix and host in _EVERYWHERE:
        host = "localhost"
    return prefix + host_and_port(_checked_host(host, part), port)


def _prefix(scheme: str, rest: str, part: str) -> tuple[str, str]:
    """What gRPC is to see of a scheme, and the rest without the authority of a ``dns://``."""
    if scheme == "grpc":
        return "", rest
    if scheme == "dns":
        server, slash, name = rest.partition("/")
        if not slash or not name:
            raise InvalidInput(f"the address {part!r} names no host", hint="write dns:///HOST:PORT")
        return f"dns://{server}/", name
    place = rest.partition("/")[0] or "HOST"
    shown = place if re.search(r":\d+$", place) else f"{place}:{DEFAULT_PORT}"
    if scheme in ("https", "grpcs"):
        raise InvalidInput(
            f"{scheme}:// is not part of a gRPC address",
            hint=Hint(f"write Client({shown!r}, tls=True)", f"write --server {shown} --tls"),
        )
    if scheme == "http":
        raise InvalidInput(
            "http:// is not part of a gRPC address",
            hint=f'write {shown}; it is the address that embedserve serve prints after "gRPC on", not that of the'
            " HTTP port",
        )
    raise InvalidInput(f"the address begins with {scheme}://, which is not known", hint=_EXAMPLE)


def _split(text: str, part: str) -> tuple[str, int]:
    if text.startswith("["):
        host, closing, rest = text[1:].partition("]")
        if not closing or (rest and not rest.startswith(":")):
            raise InvalidInput(f"the address {part!r} has one bracket too few", hint="write [::1]:50051")
        return host, _port(rest[1:], part) if rest else DEFAULT_PORT
    if text.count(":") <= 1:
        host, colon, port = text.partition(":")
        return host, _port(port, part) if colon else DEFAULT_PORT
    host, _, last = text.rpartition(":")
    whole, shorter = _is_ipv6(text), _is_ipv6(host)
    # fe80::1:8080 may be an address, or fe80::1 with a port. No port that a person writes has fewer than four digits.
    if shorter and last.isdecimal() and (not whole or len(last) == 4):
        either = f"[{text}]:{DEFAULT_PORT} or " if whole else ""
        raise InvalidInput(
            f"the address {part!r} has an IPv6 address without brackets", hint=f"write {either}[{host}]:{last}"
        )
    return text, DEFAULT_PORT


def _port(text: str, part: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text[:6]) <= 65535:
        what = f"port {text!r}" if text else "no port after its colon"
        raise InvalidInput(f"the address {part!r} has {what}; ports are 1 to 65535", hint=_EXAMPLE)
    return int(text)


def _checked_host(host: str, part: str) -> str:
    if ":" in host:
        if not _is_ipv6(host):
            raise InvalidInput(f"{host!r} in the address {part!r} is no IPv6 address", hint=_EXAMPLE)
        return host
    if not host:
        raise InvalidInput(f"the address {part!r} names no host", hint=_EXAMPLE)
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError:
            raise InvalidInput(f"{host!r} in the address {part!r} is no name of a host", hint=_EXAMPLE) from None
    if not _NAME.fullmatch(host) or len(host) > 253:
        raise InvalidInput(f"{host!r} in the address {part!r} is no name of a host", hint=_EXAMPLE)
    if re.fullmatch(r"[\d.]+", host) and not _is_ipv4(host):
        raise InvalidInput(f"{host!r} in the address {part!r} is no IPv4 address", hint=_EXAMPLE)
    return host


def _is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

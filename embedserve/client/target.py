"""The target of a client: HOST:PORT, or any other address that gRPC takes."""

from __future__ import annotations

import ipaddress
import re

DEFAULT_PORT = 50051


def address(target: str) -> str:
    """The target with our port where it names none; gRPC itself would take 443."""
    has_port = ":" in target.rpartition("]")[2]  # behind the brackets of an IPv6 address
    return target if has_port else f"{target}:{DEFAULT_PORT}"


def is_this_machine(target: str) -> bool:
    """Whether what is sent to the target never leaves this machine."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    addresses = re.sub(r"^(ipv4|ipv6|dns):(//[^/]*/)?", "", target).split(",")
    return all(_is_loopback(re.sub(r":\d+$", "", one).strip("[]")) for one in addresses)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

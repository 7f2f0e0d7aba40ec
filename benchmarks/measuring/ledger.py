"""Calls as their client saw them, compared with the server's metrics."""

from __future__ import annotations

import re
import urllib.request
from collections import Counter
from dataclasses import dataclass, field

OPEN_ENDS = ("OK", "RESOURCE_EXHAUSTED", "CANCELLED", "DEADLINE_EXCEEDED")
"""Codes under which a server may count a call that its client abandoned: answered or refused before, cancellation
noticed, deadline noticed. Or it never saw the call."""


@dataclass
class Ledger:
    """Calls by method and gRPC code, as their client saw them."""

    known: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Calls with a status from the server."""
    left: Counter[str] = field(default_factory=Counter)
    """By method, calls that the client abandoned before it had a status."""
    lost: Counter[str] = field(default_factory=Counter)
    """By method, calls whose status grpc.aio's client lost: it was writing to the stream when the server ended it."""

    def differences(self, counted: Counter[tuple[str, str]]) -> list[str]:
        """Where a server's count cannot be of the same calls. For each method and code it must have the known calls; it
        may have abandoned calls under one of OPEN_ENDS; and it must have the lost ones, under any code."""
        found = []
        for method in sorted({method for method, _ in [*self.known, *counted]} | set(self.left) | set(self.lost)):
            codes = {code for other, code in [*self.known, *counted] if other == method}
            extra, without_status = 0, self.left[method] + self.lost[method]
            for code in sorted(codes):
                ours, theirs = self.known[method, code], counted[method, code]
                spare = without_status if code in OPEN_ENDS else self.lost[method]
                extra += theirs - ours
                if not ours <= theirs <= ours + spare:
                    found.append(
                        f"{method} {code}: the server counts {theirs}, the client {ours}"
                        + (f" and {spare} without a status" if spare else "")
                    )
            if extra > without_status:
                found.append(f"{method}: the server counts {extra - without_status} calls that nobody made")
            elif extra < self.lost[method]:
                found.append(f"{method}: the server does not count {self.lost[method] - extra} calls")
        return found


def scrape(http_url: str, token: str) -> str:
    """The metrics of a server as text."""
    request = urllib.request.Request(f"{http_url}/metrics", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=10) as response:
        text: str = response.read().decode()
    return text


def counted_calls(metrics: str) -> Counter[tuple[str, str]]:
    """Calls by method and code, without zeros."""
    pattern = r'^embedserve_requests_total\{code="(\w+)",method="(\w+)"\} (\S+)$'
    found = re.findall(pattern, metrics, re.MULTILINE)
    return Counter({(method, code): int(float(value)) for code, method, value in found if float(value)})


def value_of(metrics: str, sample: str) -> float:
    """One sample, such as ``embedserve_images_total{outcome="failed"}``.

    Raises:
        LookupError: the metrics do not have it.
    """
    found = re.search(rf"^{re.escape(sample)} (\S+)$", metrics, re.MULTILINE)
    if found is None:
        raise LookupError(f"no {sample} in the metrics")
    return float(found[1])

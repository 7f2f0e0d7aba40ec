"""What a client saw of its calls, and whether a server's metrics say the same."""

from __future__ import annotations

import re
import urllib.request
from collections import Counter
from dataclasses import dataclass, field

OPEN_ENDS = ("OK", "RESOURCE_EXHAUSTED", "CANCELLED", "DEADLINE_EXCEEDED")
"""What a server may have counted of a call that its client left: answered or refused already, noticed in time, noticed
by the deadline. Or it never saw it."""


@dataclass
class Ledger:
    """Calls by method and gRPC code, as their client saw them."""

    known: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Calls with a status from the server."""
    left: Counter[str] = field(default_factory=Counter)
    """By method, calls that the client left or gave up before it had a status."""
    lost: Counter[str] = field(default_factory=Counter)
    """By method, calls whose status grpc.aio's client lost: it was writing to the stream when the server ended it."""

    def differences(self, counted: Counter[tuple[str, str]]) -> list[str]:
        """Where a server's count cannot be the same calls: for each method and code it has those that are known, of
        the calls that were left at most all, under one of OPEN_ENDS, and those that were lost under any code."""
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
    """Calls by method and code; those that never happened are left out."""
    pattern = r'^embedserve_requests_total\{code="(\w+)",method="(\w+)"\} (\S+)$'
    found = re.findall(pattern, metrics, re.MULTILINE)
    return Counter({(method, code): int(float(value)) for code, method, value in found if float(value)})


def value_of(metrics: str, sample: str) -> float:
    """One sample, such as ``embedserve_images_total{outcome="failed"}``.

    Raises:
        LookupError: there is none.
    """
    found = re.search(rf"^{re.escape(sample)} (\S+)$", metrics, re.MULTILINE)
    if found is None:
        raise LookupError(f"no {sample} in the metrics")
    return float(found[1])

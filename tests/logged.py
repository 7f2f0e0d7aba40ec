"""The log of a test as a server writes it: unlike ``caplog.text``, with the fields of each line."""

from __future__ import annotations

import pytest

from embedserve.server.telemetry.logs import TextFormatter


def logged(caplog: pytest.LogCaptureFixture) -> str:
    """The lines of all records."""
    return "\n".join(map(TextFormatter().format, caplog.records))

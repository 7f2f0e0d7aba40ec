from __future__ import annotations

from tests.compatibility.conftest import answers, old

__all__ = ["answers", "old"]

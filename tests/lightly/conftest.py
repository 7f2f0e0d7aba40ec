"""Warnings raised while lightly is imported are ignored; elsewhere in the tests they are errors."""

from __future__ import annotations

import warnings
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def lightly_loss() -> ModuleType:
    """``lightly.loss``; the tests are skipped where it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(
            "lightly.loss", reason="lightly is not installed; it is in the extra `peers`", exc_type=ModuleNotFoundError
        )

from __future__ import annotations

from tests.store.upkeep.backup_cases import backup

__all__ = ["backup"]

"""What is remembered about building the segments of a collection."""

from __future__ import annotations

import threading
import time


class BuildState:
    """Guarded by its lock, except that anyone may look at it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        """Held while a segment is built or taken out of use."""
        self.last_s = time.monotonic()
        """When the last build ended, or the collection was opened; monotonic."""
        self.files_current = True
        """False after CURRENT.json could not be written, so that it has to be written again."""

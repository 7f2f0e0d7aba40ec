"""The client that blocks is generated from the one for asyncio."""

from __future__ import annotations

import ast

import pytest

from scripts import sync_client

ADDED = '''
    async def nearest(self, collection: str, ids: list[str]) -> list[Hit]:
        """The closest item of each, for one event loop."""
        await asyncio.sleep(0)
        hits = []
        async for id in self._ids(ids):  # as they come
            hits += await self.search(collection, id=id, k=1)
        return hits
'''
EXPECTED = '''
    def nearest(self, collection: str, ids: list[str]) -> list[Hit]:
        """The closest item of each, for one event loop."""
        time.sleep(0)
        hits = []
        for id in self._ids(ids):  # as they come
            hits += self.search(collection, id=id, k=1)
        return hits
'''


def sources() -> dict[str, str]:
    return {name: (sync_client.CLIENT / name).read_text(encoding="utf-8") for name in sync_client.TARGETS}


def test_the_committed_files_are_what_the_script_writes() -> None:
    for name, text in sync_client.generate(sources()).items():
        assert (sync_client.CLIENT / name).read_text(encoding="utf-8") == text, "run: make client"


def test_a_method_that_is_added_to_the_async_client_is_in_both_with_its_comments() -> None:
    added = sources()
    added["aio.py"] += ADDED
    text = sync_client.generate(added)["sync.py"]
    assert text.endswith(EXPECTED)
    ast.parse(text)


def test_what_no_rule_replaces_is_refused_with_its_line() -> None:
    added = sources()
    added["aio.py"] += "\n    async def both(self) -> None:\n        await asyncio.gather(self.close(), self.close())\n"
    with pytest.raises(SystemExit, match=r"aio\.py has what no rule .* replaces: .*asyncio\.gather\("):
        sync_client.generate(added)


def test_a_rule_that_matches_nothing_is_refused() -> None:
    changed = sources()
    changed["aio.py"] = changed["aio.py"].replace(", for one event loop", "")
    with pytest.raises(SystemExit, match=r"rules .* that match nothing: .*for one event loop"):
        sync_client.generate(changed)

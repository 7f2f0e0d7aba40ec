"""What stands for a value, an id or an image arrives at a server as what it stands for."""

from __future__ import annotations

import io
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from PIL import Image

from embedserve import Client, Eq, In, ItemInput
from embedserve.errors import ItemsFailed
from tests.fakes import FakeEncoder, picture
from tests.running import serving

SHOP = UUID("12345678-1234-5678-1234-567812345678")
AT = datetime(2026, 11, 24, 10, 30, tzinfo=timezone(timedelta(hours=1)))


def test_values_and_ids_are_stored_and_found_as_what_they_stand_for(tmp_path: Path) -> None:
    metadata = {"at": AT, "day": date(2026, 11, 24), "shop": SHOP, "price": np.float32(9.5), "n": np.int64(3)}
    with serving(FakeEncoder(), tmp_path) as address, Client(address) as client:
        client.create_collection("visits", external=True, dimension=3, filter_keys=(key for key in ["shop", "at"]))
        client.add(
            "visits",
            [
                ItemInput(id=7, vector=[1, 0, 0], metadata={**metadata, "paid": np.True_}),
                ItemInput(id=SHOP, vector=np.array([0.0, 1.0, 0.0]), metadata=None),
            ],
        )
        [first, second] = client.get_items("visits", [np.int64(7), SHOP])
        assert first is not None
        assert second is not None
        assert (first.id, second.id) == ("7", str(SHOP))
        assert first.metadata == {
            "at": "2026-11-24T09:30:00.000000Z",
            "day": "2026-11-24",
            "shop": str(SHOP),
            "price": 9.5,
            "n": 3,
            "paid": True,
        }
        for condition in (Eq("at", AT.astimezone(UTC)), Eq("shop", SHOP), In("n", np.arange(5)), Eq("paid", np.True_)):
            assert [hit.id for hit in client.search("visits", vector=(1, 1, 0), filter=condition)] == ["7"]
        assert client.delete_items("visits", [7]) == 1


def test_pixels_are_embedded_as_the_file_they_came_from(tmp_path: Path) -> None:
    data = picture(1)
    opened = Image.open(io.BytesIO(data))
    with serving(FakeEncoder(), tmp_path) as address, Client(address) as client:
        file, pil, array = client.embed([data, opened, np.asarray(opened.convert("RGB"))])
    assert np.array_equal(file, pil)
    assert np.array_equal(file, array)


def test_what_the_server_refuses_is_raised_once_the_others_are_on_disk(tmp_path: Path) -> None:
    with serving(FakeEncoder(), tmp_path) as address, Client(address) as client:
        client.create_collection("photos")
        items = [ItemInput(id=n, image=b"bad" if n in (5, 30) else picture(n)) for n in range(40)]
        with pytest.raises(ItemsFailed, match="2 of 40 items were not written: item '5': ") as caught:
            client.add("photos", items)
        stored = {item.id for item in client.list_items("photos")}
    assert [failure.id for failure in caught.value.failures] == ["5", "30"]
    assert stored == {str(n) for n in range(40)} - {"5", "30"}

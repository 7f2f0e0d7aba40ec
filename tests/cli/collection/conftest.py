"""A collection with three items, for the tests of `embedserve collection`."""

from __future__ import annotations

import pytest

from embedserve import Client
from embedserve.client import ItemInput
from tests.fakes import DIMENSION, picture


@pytest.fixture
def filled(client: Client, collection: str) -> str:
    """Three items: a.png and b.png are pictures, v is a vector."""
    client.create_collection(collection)
    items = [
        ItemInput(id="a.png", image=picture(1), metadata={"label": "cat", "tags": ["red", "big"], "ok": True}),
        ItemInput(id="b.png", image=picture(2), metadata={"label": "dog", "year": 1999}),
        ItemInput(id="v", vector=[3.0, 4.0] + [0.0] * (DIMENSION - 2)),
    ]
    results = client.add(collection, items, encoder_fingerprint=client.encoder().fingerprint)
    assert [result.error for result in results] == [None] * 3
    return collection

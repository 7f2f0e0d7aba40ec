"""What ``from embedserve import …`` offers: everything that a user of the client names, and nothing else."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
from typing import Any

import pytest

import embedserve

EXPORTED = [
    "AddResult",
    "And",
    "AsyncClient",
    "CheckProgress",
    "CheckReport",
    "Client",
    "CollectionInfo",
    "Embeddings",
    "EmbedserveError",
    "EncoderInfo",
    "EncoderRef",
    "Eq",
    "Exists",
    "Filter",
    "Hit",
    "ImageInput",
    "In",
    "Item",
    "ItemId",
    "ItemInput",
    "Keep",
    "Limits",
    "Media",
    "Metadata",
    "MetadataChange",
    "MetadataInput",
    "MetadataValue",
    "Not",
    "Or",
    "Query",
    "Range",
    "Recall",
    "ServerInfo",
    "Target",
    "__version__",
    "errors",
]
OF_OTHERS = {
    *("Any", "ArrayLike", "AsyncIterator", "BaseException", "Callable", "ChannelCredentials", "Iterable", "Iterator"),
    *("Mapping", "NDArray", "None", "Path", "Self", "Sequence", "TracebackType"),
    "Vector",  # float32 [D]; known to type checkers only
}
"""Names in annotations that are not ours, or no values."""
HELD = {
    "embedserve.client": {
        *("AddResult", "AsyncClient", "Client", "Embeddings", "EncoderInfo", "EncoderRef", "ImageInput", "ItemInput"),
        "MetadataChange",
        *("Query", "ServerInfo"),
    },
    "embedserve.types": {
        *("And", "CheckProgress", "CheckReport", "CollectionInfo", "Eq", "Exists", "Filter", "Hit", "In", "Item"),
        *("Keep", "Limits", "Media", "Metadata", "MetadataValue", "Not", "Or", "Range", "Recall", "SearchOptions"),
    },
    "embedserve.errors": {
        *("AlreadyExists", "CollectionNotFound", "DataError", "DeadlineExceeded", "DiskFull", "EmbedserveError"),
        *("EncoderMismatch", "FailedPrecondition", "ImageError", "ImageFormatError", "ImageTooLarge"),
        *("ImageUndecodable", "InternalError", "InvalidInput", "ItemNotFound", "LimitExceeded", "NotFound"),
        *("Overloaded", "PermissionDenied", "Unauthenticated", "Unavailable"),
    },
}
"""Module → names that may be imported from it, as before the root had them."""


def names_in(annotation: object) -> set[str]:
    """Names of types in an annotation, as it is written."""
    return {name.rpartition(".")[2] for name in re.findall(r"[\w.]*\b[A-Z]\w+", str(annotation))}


def test_the_list_of_exported_members_is_known_and_sorted() -> None:
    assert embedserve.__all__ == EXPORTED == sorted(EXPORTED)


@pytest.mark.parametrize("name", EXPORTED)
def test_every_exported_member_resolves_and_shows_in_completion(name: str) -> None:
    assert getattr(embedserve, name) is not None
    assert name in dir(embedserve)


@pytest.mark.parametrize("name", ["SearchOptions", "Vector", "unknown"])
def test_another_name_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'embedserve' has no attribute '{name}'"):
        getattr(embedserve, name)


@pytest.mark.parametrize("kind", ["Client", "AsyncClient"])
def test_everything_in_a_public_signature_is_exported(kind: str) -> None:
    client = getattr(embedserve, kind)
    used: set[str] = set()
    for name in ["__init__", *(name for name in dir(client) if not name.startswith("_"))]:
        signature = inspect.signature(getattr(client, name))
        annotations = [parameter.annotation for parameter in signature.parameters.values()]
        used |= names_in([*annotations, signature.return_annotation])
    assert used - OF_OTHERS - set(EXPORTED) == set()
    assert {"CollectionInfo", "Filter", "ImageInput", "Keep"} <= used


def test_everything_in_a_public_field_is_exported() -> None:
    used: set[str] = set()
    for name in EXPORTED:
        value = getattr(embedserve, name)
        if dataclasses.is_dataclass(value):
            used |= names_in([field.type for field in dataclasses.fields(value)])
    assert used - OF_OTHERS - set(EXPORTED) == set()
    assert {"EncoderRef", "Limits", "Media", "Metadata", "Recall"} <= used


@pytest.mark.parametrize("module", HELD)
def test_longer_import_paths_give_the_same(module: str) -> None:
    home = importlib.import_module(module)
    for name in HELD[module]:
        value = getattr(home, name)
        assert getattr(embedserve, name, value) is value


def test_importing_the_package_loads_a_name_only_when_it_is_used() -> None:
    def loaded(program: str) -> set[Any]:
        program += "; import sys; print([name for name in ('grpc', 'numpy') if name in sys.modules])"
        done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
        return set(ast.literal_eval(done.stdout))

    assert loaded("import embedserve; dir(embedserve)") == set()
    assert loaded("from embedserve import Eq, Hit, Keep, Metadata, errors") == set()
    assert loaded("from embedserve import ItemInput") == {"grpc", "numpy"}

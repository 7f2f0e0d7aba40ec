"""The metadata of the rows of a Parquet file: from its column ``metadata``, and from other columns that were chosen."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from embedserve.cli.collection import parquet_values
from embedserve.errors import DataError, InvalidInput

ALL = ("*",)
"""Chosen columns: all that can be metadata."""

Document = Mapping[str, Any] | InvalidInput
"""Metadata as it is in the file, perhaps nested, or why it cannot be read."""


class MetadataColumns:
    """The columns of a file that become metadata.

    Args:
        pa: pyarrow.
        schema: of the file.
        chosen: names of columns, or ALL.
        taken: names of columns that are something else.
        declared: column → its logical type in Parquet, as in "JSON"; pyarrow before 21 reads some as plain columns.

    Raises:
        DataError: there is no such column, or it cannot be metadata.
    """

    def __init__(
        self, pa: Any, schema: Any, chosen: Sequence[str], taken: Sequence[str], declared: Mapping[str, str]
    ) -> None:
        self.unusable: list[str] = []
        """Columns, and fields in them, that were asked for and cannot be metadata, with their types."""
        self.notes: set[str] = set()
        """What is not kept exactly; complete once all rows have been read."""
        self._readers: dict[str, parquet_values.Reader] = {}
        self._document: parquet_values.Reader | None = None
        """Reads the column ``metadata``; None if there is none."""
        if "metadata" in schema.names:
            self._document = self._document_reader(pa, schema.field("metadata").type)
        self._choose(pa, schema, chosen, [name for name in schema.names if name not in taken], declared)

    @property
    def names(self) -> list[str]:
        """The columns to read."""
        return ["metadata"] * (self._document is not None) + list(self._readers)

    def read(self, batch: Any) -> list[Document]:
        """The metadata of each row of an Arrow batch with these columns."""
        documents: list[Document] = [{}] * len(batch)
        if self._document is not None:
            documents = [_as_document(value) for value in self._document(batch.column("metadata"))]
        for name, read in self._readers.items():
            values = read(batch.column(name))
            documents = [_with(document, name, value) for document, value in zip(documents, values, strict=True)]
        return documents

    def _document_reader(self, pa: Any, kind: Any) -> parquet_values.Reader:
        if parquet_values.is_text(pa, kind) or parquet_values.is_json(kind):
            return lambda column: [_parsed(text) for text in parquet_values.storage(column).to_pylist()]
        read = None
        if pa.types.is_struct(kind):
            read = parquet_values.reader(pa, kind, "metadata", self.unusable, self.notes)
        if read is None:
            raise DataError(
                f"the column 'metadata' holds {kind}, neither text nor a struct",
                hint='metadata is a JSON object as text, as in {"label": "cat"}, or a struct',
            )
        return read

    def _choose(
        self, pa: Any, schema: Any, chosen: Sequence[str], others: Sequence[str], declared: Mapping[str, str]
    ) -> None:
        is_all = tuple(chosen) == ALL
        # pandas' numbering of the rows is named __index_level_0__.
        every = [name for name in others if not name.startswith("__index_level_")]
        for name in dict.fromkeys(every if is_all else chosen):
            if others.count(name) != 1:
                close = difflib.get_close_matches(name, others, 1)
                known = ", ".join(map(repr, others)) or "none"
                raise DataError(
                    f"there {'is no column' if name not in others else 'are two columns'} {name!r} for metadata",
                    hint=f"did you mean {close[0]!r}?" if close and close[0] != name else f"there are {known}",
                )
            unread: list[str] = []
            field = schema.field(name)
            if extension := parquet_values.unknown_extension(field):
                unread.append(f"{name} ({extension})")
                read = None
            else:
                read = parquet_values.DECLARED.get(declared.get(name, "")) or parquet_values.reader(
                    pa, field.type, name, unread, self.notes
                )
            if read is not None:
                self._readers[name] = read
            elif not is_all:
                raise DataError(
                    f"{', '.join(unread)} cannot be metadata",
                    hint="cast it to text, or leave it out of --metadata-columns",
                )
            self.unusable += unread


def flat(document: Document) -> dict[str, Any]:
    """Metadata without objects in objects, whose keys are joined by dots, and without nulls.

    Raises:
        InvalidInput: two values would have the same key, or a value cannot be read.
    """
    if isinstance(document, InvalidInput):
        raise InvalidInput(f"the metadata {document.message}", hint=document.hint)
    flattened: dict[str, Any] = {}
    waiting: list[tuple[str, Any]] = list(document.items())[::-1]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, InvalidInput):
            raise InvalidInput(f"{key!r} {value.message}", hint=value.hint)
        if isinstance(value, Mapping):
            waiting += [(f"{key}.{name}", value[name]) for name in value][::-1]
        elif value is not None:
            if key in flattened:
                raise InvalidInput(f"there are two values for {key!r}", hint="rename a column or field")
            flattened[key] = value
    return flattened


def _parsed(text: str | None) -> Any:
    if text is None or text == "":
        return None
    try:
        return parquet_values.parsed(text)
    except InvalidInput as error:
        return error


def _as_document(value: Any) -> Document:
    if value is None:
        return {}
    if isinstance(value, (Mapping, InvalidInput)):
        return value
    return InvalidInput(f"is {json.dumps(value)[:80]}, not a JSON object")


def _with(document: Document, name: str, value: Any) -> Document:
    """The metadata with one more key; an error if it has the key already."""
    if value is None or isinstance(document, InvalidInput):
        return document
    if name in document:
        value = InvalidInput("is in the column metadata too", hint="leave it out of --metadata-columns")
    return {**document, name: value}

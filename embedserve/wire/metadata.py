"""Metadata ↔ messages."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

from embedserve.errors import InvalidInput
from embedserve.types import Metadata, MetadataValue
from embedserve.v1 import common_pb2 as common_pb


def value_to_proto(value: MetadataValue) -> common_pb.MetadataValue:
    """One metadata value as a message, by its Python type."""
    if isinstance(value, bool):  # before int: a bool is one
        return common_pb.MetadataValue(bool_value=value)
    if isinstance(value, str):
        return common_pb.MetadataValue(string_value=value)
    if isinstance(value, int):
        return common_pb.MetadataValue(int64_value=value)
    if isinstance(value, float):
        return common_pb.MetadataValue(double_value=value)
    return common_pb.MetadataValue(string_list_value=common_pb.StringList(values=value))


def value_from_proto(message: common_pb.MetadataValue) -> MetadataValue:
    """The metadata value in a message.

    Raises:
        InvalidInput: no field is set.
    """
    kind = message.WhichOneof("kind")
    if kind is None:
        raise InvalidInput("a metadata value has no field set")
    if kind == "string_list_value":
        return list(message.string_list_value.values)
    value: MetadataValue = getattr(message, kind)
    return value


def metadata_into(target: MutableMapping[str, common_pb.MetadataValue], metadata: Metadata) -> None:
    """Write metadata into a message's map field."""
    for key, value in metadata.items():
        message, kind = target[key], type(value)
        # In place, as this is most of the cost of a response; ``value_to_proto`` would make one more message.
        if kind is str:
            message.string_value = value  # type: ignore[assignment]
        elif kind is int:
            message.int64_value = value  # type: ignore[assignment]
        elif kind is float:
            message.double_value = value  # type: ignore[assignment]
        else:
            message.CopyFrom(value_to_proto(value))


def metadata_from_proto(source: Mapping[str, common_pb.MetadataValue]) -> dict[str, MetadataValue]:
    """The metadata in a message's map field.

    Raises:
        InvalidInput: a value has no field set; names its key.
    """
    metadata: dict[str, MetadataValue] = {}
    for key, value in source.items():
        try:
            metadata[key] = value_from_proto(value)
        except InvalidInput as error:
            raise error.at(f"metadata {key!r}") from None
    return metadata

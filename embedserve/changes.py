"""A change of an item's metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from embedserve.errors import InvalidInput
from embedserve.metadata import shown
from embedserve.types import Metadata, MetadataValue, check_metadata, check_metadata_key

if TYPE_CHECKING:
    from uuid import UUID

    import numpy as np


@dataclass(frozen=True, slots=True)
class MetadataChange:
    """What is to change in the metadata of one item; its vector and its image stay as they are."""

    id: str
    """Of the item."""
    set: Metadata = field(default_factory=dict)
    """Values to set; other keys keep theirs."""
    remove: Sequence[str] = ()
    """Keys to remove; one that the item does not have is not an error. None of those in ``set``."""
    replace: bool = False
    """The metadata becomes ``set``: all other keys are removed."""

    if TYPE_CHECKING:  # what the client takes, and makes text and stored values of when it sends the change

        def __init__(
            self,
            id: str | int | UUID | np.integer[Any],
            set: Mapping[str, Any] = ...,
            remove: Sequence[str] = (),
            replace: bool = False,
        ) -> None: ...

    def of(self, metadata: Metadata) -> dict[str, MetadataValue]:
        """What becomes of an item's metadata."""
        kept = {} if self.replace else {key: value for key, value in metadata.items() if key not in self.remove}
        return {**kept, **self.set}


def check_change(change: MetadataChange) -> None:
    """Refuse a change whose keys or values are not allowed, or that contradicts itself.

    Raises:
        InvalidInput: names the key.
    """
    if not isinstance(change.set, Mapping):
        raise InvalidInput(f"set is {shown(change.set)}", hint="write a dict, as in set={'label': 'red'}")
    check_metadata(change.set)
    is_several = isinstance(change.remove, Sequence) and not isinstance(change.remove, (str, bytes, bytearray))
    if not is_several or not all(isinstance(key, str) for key in change.remove):
        raise InvalidInput(f"remove is {shown(change.remove)}", hint="write the keys in a list, as in remove=['label']")
    for key in change.remove:
        check_metadata_key(key)
        if key in change.set:
            raise InvalidInput(f"the change both sets and removes {key!r}", hint="do one of the two")
    if not isinstance(change.replace, bool):
        raise InvalidInput(f"replace is {shown(change.replace)}", hint="write replace=True or replace=False")
    if change.replace and change.remove:
        raise InvalidInput(
            f"the change replaces all metadata and also removes {change.remove[0]!r}",
            hint="with replace, every key that is not set is removed",
        )

"""The table of an evaluation: one row for each way to turn images into vectors, with figures over all its seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedserve_training.evaluate.figures import Figures
    from embedserve_training.evaluate.self_retrieval import SelfRetrieval


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measure over all seeds."""

    mean: float
    """A share, 0–1."""
    std: float | None
    """Sample standard deviation (n − 1) over the seeds; None for a single one."""
    values: tuple[float, ...]
    """One per seed."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """The mean and standard deviation of one value or more."""
        mean = sum(values) / len(values)
        std = None
        if len(values) > 1:
            std = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
        return cls(mean=mean, std=std, values=tuple(values))

    def to_json(self) -> dict[str, Any]:
        """As JSON values; the key of the standard deviation is ``spread``."""
        return {"mean": self.mean, "spread": self.std, "values": self.values}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The figures of one encoder."""

    dimension: int
    """Values per vector."""
    labelled: Figures | None
    """None if the folder has no labels."""
    self_retrieval: SelfRetrieval | None
    """None if it was left out."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to turn images into vectors, and how good they are. A figure is None where it was left out."""

    name: str
    knn: Figure | None = None
    """Test images that the weighted vote of their nearest neighbours gives the right label."""
    linear: Figure | None = None
    """Test images that a linear classifier on the frozen vectors gives the right label."""
    recall_1: Figure | None = None
    """Test images with at least one image of their label among the nearest 1, 5 or 10."""
    recall_5: Figure | None = None
    recall_10: Figure | None = None
    map: Figure | None = None
    """Mean average precision of the whole ranking."""
    same_label_top10: Figure | None = None
    """Mean share of the ten nearest neighbours that have the label of the test image."""
    self_recall_1: Figure | None = None
    """Augmented images whose original is among the nearest 1, 5 or 10. No label is used."""
    self_recall_5: Figure | None = None
    self_recall_10: Figure | None = None
    self_mrr: Figure | None = None
    """Mean of 1 / rank of the original."""
    dimension: int = 0
    note: str = ""
    """A description of the row, or why it was left out."""

    @classmethod
    def of(cls, name: str, measured: Sequence[Measured], note: str = "") -> Row:
        """The row of an encoder that was measured once for each seed."""
        values: dict[str, list[float]] = {}
        for one in measured:
            labelled = asdict(one.labelled) if one.labelled else {}
            unlabelled = asdict(one.self_retrieval) if one.self_retrieval else {}
            unlabelled = {f"self_{key}": value for key, value in unlabelled.items()}
            for key, value in {**labelled, **unlabelled}.items():
                values.setdefault(key, []).append(value)
        known = {entry.name for entry in fields(cls)}
        figures = {key: Figure.of(found) for key, found in values.items() if key in known and None not in found}
        return cls(name=name, dimension=measured[0].dimension, note=note, **figures)

    @classmethod
    def left_out(cls, name: str, why: str) -> Row:
        """A row without figures, and the reason."""
        return cls(name=name, note=f"left out: {why}")

    def to_json(self) -> dict[str, Any]:
        """As JSON values, by the names of the fields."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: value.to_json() if isinstance(value, Figure) else value for name, value in values.items()}

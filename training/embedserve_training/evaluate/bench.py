"""The test bench of an evaluation: the same images and the same queries for all encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from embedserve.errors import DataError, SetupError, TrainingError
from embedserve_training.evaluate import images, split_copies
from embedserve_training.evaluate.figures import figures
from embedserve_training.evaluate.images import ImageSplit, LoadedSplit
from embedserve_training.evaluate.self_retrieval import Queries, make_queries, score
from embedserve_training.evaluate.split_copies import SplitCopies
from embedserve_training.evaluate.subjects import Embed
from embedserve_training.evaluate.table import Measured, Row

if TYPE_CHECKING:
    from embedserve.images.preprocess import PreprocessSpec
    from embedserve_training.augment import Augmentation

NAME_WIDTH = 21


class Bench:
    """The images and the self-retrieval queries of an evaluation, loaded once for each preprocessing.

    Args:
        chosen: the files.
        recipe: augmentation of the self-retrieval queries; None to leave self-retrieval out.
        report: called with each line of text.

    Raises:
        SetupError: there are neither labels nor a recipe, and so nothing to measure.
    """

    def __init__(self, chosen: ImageSplit, recipe: Augmentation | None, report: Callable[[str], None]) -> None:
        if recipe is None and chosen.test is None:
            raise SetupError(
                f"{chosen.train.root} has no labels, and measuring without labels needs PyTorch",
                hint="pip install 'embedserve[train]', or put the images of each label into a subfolder of that name",
            )
        self.report = report
        self.chosen = chosen
        """The files; copies are on one side as soon as images were loaded."""
        self.copies: SplitCopies | None = None
        """None before images were loaded."""
        self._recipe = recipe
        self._loaded: dict[PreprocessSpec, LoadedSplit] = {}
        self._queries: dict[PreprocessSpec, Queries | None] = {}
        self.left_out = "" if recipe else "PyTorch is not installed"
        """Why self-retrieval is left out; empty if it is not."""

    def loaded(self, spec: PreprocessSpec) -> LoadedSplit:
        """The images, preprocessed."""
        if spec not in self._loaded:
            loaded = images.load(self.chosen, spec, self.report)
            if self.copies is None:
                self.chosen, loaded, self.copies = split_copies.separate(self.chosen, loaded)
            self._loaded[spec] = loaded
        return self._loaded[spec]

    def queries(self, spec: PreprocessSpec) -> Queries | None:
        """The self-retrieval queries, preprocessed; None if self-retrieval is left out.

        Raises:
            DataError: there are too few images, and no labels to measure with instead.
        """
        if self._recipe is None:
            return None
        if spec not in self._queries:
            try:
                self._queries[spec] = make_queries(self.loaded(spec).all_ASSC, self._recipe)
            except DataError as error:
                if self.chosen.test is None:
                    raise
                self._queries[spec] = None
                self.left_out = error.message
                self.report(f"itself: left out, {error.message}")
        return self._queries[spec]

    def row(self, name: str, encoders: Sequence[tuple[Embed, PreprocessSpec]], note: str = "") -> Row:
        """Measure one encoder, once for each seed.

        Args:
            name: of the row.
            encoders: for each seed how it embeds, and its preprocessing.
            note: what the row is.

        Raises:
            TrainingError: a vector is not finite.
        """
        try:
            row = Row.of(name, [self._measure(embed, spec) for embed, spec in encoders], note)
        except TrainingError as error:
            raise error.at(name) from error
        figure, label = (row.knn, "kNN") if row.knn else (row.self_recall_1, "finds itself")
        self.report(f"{name:<{NAME_WIDTH}} {label} {100 * figure.mean if figure else 0:.1f} %   {note}".rstrip())
        return row

    def _measure(self, embed: Embed, spec: PreprocessSpec) -> Measured:
        loaded, queries = self.loaded(spec), self.queries(spec)
        train_ND = embed(loaded.train_NSSC)
        labelled = None
        all_AD = train_ND
        if len(loaded.test_MSSC):
            test_MD = embed(loaded.test_MSSC)
            labelled = figures(train_ND, loaded.train_labels_N, test_MD, loaded.test_labels_M)
            all_AD = loaded.all_of(train_ND, test_MD)
        found = score(queries, all_AD, embed(queries.views_QSSC)) if queries else None
        return Measured(dimension=train_ND.shape[1], labelled=labelled, self_retrieval=found)

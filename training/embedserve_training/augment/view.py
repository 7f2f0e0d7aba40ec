"""One view of each image: the operations of a recipe, in the order of the package's docstring.

Shapes: B images, C = 3 channels, P pixels, T side of the cached image, S side of the view.
"""

from __future__ import annotations

import torch
from torch import Tensor

from embedserve_training.augment.colour import Colour
from embedserve_training.augment.draw import Draw
from embedserve_training.augment.pixels import Pixels
from embedserve_training.augment.recipe import Augmentation
from embedserve_training.augment.spatial import Spatial


def augment(
    images_BTTC: Tensor,
    size_px: int,
    recipe: Augmentation,
    generator: torch.Generator,
    *,
    first: int = 0,
    total: int | None = None,
) -> Tensor:
    """One view of each image.

    Parameters are drawn on the CPU for the global batch, and noise is a function of a parameter. So a seed gives the
    same views on every device and for any split of the batch over processes, up to rounding.

    Args:
        images_BTTC: uint8 [B, T, T, 3].
        size_px: S.
        recipe: the operations and their strengths.
        generator: a CPU generator; the views are a function of its state.
        first: position of the first of these images in the global batch, if other processes have the rest of it.
        total: size of the global batch; B by default.

    Returns:
        Float [B, 3, S, S] within [0, 1], in channels-last memory format.

    Raises:
        ValueError: these positions are not in a batch of that size.
    """
    batch = len(images_BTTC)
    total = batch if total is None else total
    if not 0 <= first <= first + batch <= total:
        raise ValueError(f"images {first} to {first + batch} are not in a batch of {total}")
    draw = Draw(generator, batch, first, total)
    spatial, colour, pixels = Spatial.draw(recipe, draw), Colour.draw(recipe, draw), Pixels.draw(recipe, draw)

    x_BCSS = spatial.apply(images_BTTC, size_px)
    view_BCP = colour.apply(x_BCSS.flatten(2)).clamp_(0, 1)
    view_BCSS = pixels.apply(view_BCP.view_as(x_BCSS))
    return view_BCSS.contiguous(memory_format=torch.channels_last)

"""Eight drawn images that show, on any machine, whether an encoder still computes what it computed at export."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COUNT = 8


def draw(size_px: int) -> NDArray[np.uint8]:
    """Eight images, uint8 [8, S, S, 3].

    Drawn with integer arithmetic only, so the bytes are the same on every machine and with every library version.
    """
    import numpy as np

    y, x = np.mgrid[0:size_px, 0:size_px].astype(np.int64)
    u, v = x * 255 // max(size_px - 1, 1), y * 255 // max(size_px - 1, 1)
    cell = max(size_px // 8, 1)
    checks = ((x // cell + y // cell) % 2) * 255
    rings = ((x - size_px // 2) ** 2 + (y - size_px // 2) ** 2) * 8 // max(size_px, 1) % 256
    # Pseudo-noise: a linear congruence over the position.
    noise = (x * 1103515245 + y * 12345 + x * y * 2654435761) // 65536 % 256
    disc = np.where((2 * x - size_px) ** 2 + (2 * y - size_px) ** 2 < (size_px * 3 // 4) ** 2, 230, 20)
    stripes = (x // cell) % 2 * 200 + 30
    flat = np.full_like(x, 128)
    planes = [
        (u, v, flat),
        (checks, checks, checks),
        (rings, 255 - rings, flat),
        (noise, noise[::-1], noise[:, ::-1]),
        (disc, disc, 255 - disc),
        (stripes, 255 - stripes, stripes.T),
        (flat, flat, flat),
        (checks * u // 255, v, rings),
    ]
    return np.stack([np.stack(plane, axis=-1) for plane in planes]).astype(np.uint8)


def lowest_cosine(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """The smallest cosine between corresponding rows of two float [N, D] arrays; NaN anywhere gives −1."""
    import numpy as np

    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = (a * b).sum(axis=1) / norms
    return float(np.nan_to_num(cosines, nan=-1.0).min())

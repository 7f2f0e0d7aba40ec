"""Pixels → the encoder's square: the rule, and that it is computed as written."""

from __future__ import annotations

import io
import json
import time

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from embedserve.errors import EncoderFileError
from embedserve.images import preprocess
from embedserve.images.pixel_rule import STORED
from embedserve.images.preprocess import PreprocessSpec


def waves(width: int, height: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]: a smooth picture."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [np.sin(x / 9 + y / 17), np.sin(y / 11), np.sin(x / 23 - y / 13)]
    return ((np.stack(planes, axis=-1) + 1) * 127.5).astype(np.uint8)


# --- The rule ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size_px": 0}, "size_px is 0"),
        ({"size_px": 4097}, "size_px is 4097"),
        ({"size_px": 224, "resize_px": 223}, "resize_px is 223"),
        ({"size_px": 224, "resize_px": 897}, "resize_px is 897"),
        ({"size_px": 224, "resize_px": -1}, "resize_px is -1"),
        ({"size_px": 224, "filter": "nearest"}, "filter is 'nearest'"),
        ({"size_px": 224.0}, "size_px is 224.0"),
        ({"size_px": "224"}, "size_px is '224'"),
        ({"size_px": True}, "size_px is True"),
        ({"size_px": 224, "resize_px": 256.0}, "resize_px is 256.0"),
        ({"size_px": 224, "mean": [0.5]}, "mean"),
        ({}, "size_px"),
        ([224], "no preprocess rule"),
        (None, "no preprocess rule"),
    ],
    ids=str,
)
def test_a_rule_that_cannot_be_followed_is_refused(fields: object, message: str) -> None:
    with pytest.raises(EncoderFileError, match=message):
        PreprocessSpec.from_json(fields)


@pytest.mark.parametrize(
    "spec",
    [
        PreprocessSpec(size_px=1),
        PreprocessSpec(size_px=4096, resize_px=4096),
        PreprocessSpec(size_px=224, resize_px=896, filter="bicubic"),
    ],
    ids=str,
)
def test_a_rule_comes_back_from_json_as_it_was(spec: PreprocessSpec) -> None:
    assert PreprocessSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_the_json_of_a_rule_never_changes_since_fingerprints_cover_it() -> None:
    spec = PreprocessSpec(size_px=224, resize_px=256, pixels=STORED)
    assert json.dumps(spec.to_json(), sort_keys=True) == '{"filter": "bilinear", "resize_px": 256, "size_px": 224}'


@pytest.mark.parametrize(("size_px", "resize_px", "expected"), [(224, 256, 512), (224, 0, 448), (28, 0, 256)])
def test_a_scaled_decode_keeps_twice_the_target_and_enough_for_a_thumbnail(
    size_px: int, resize_px: int, expected: int
) -> None:
    assert PreprocessSpec(size_px=size_px, resize_px=resize_px).min_decoded_side_px == expected


# --- The computation -----------------------------------------------------------------------------------------------


def triangle(distance: float) -> float:
    return max(0.0, 1.0 - abs(distance))


def cubic(distance: float) -> float:
    """Keys' kernel with a = −1/2."""
    x = abs(distance)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def slow_axis(
    values: NDArray[np.float64], start: float, length: float, count: int, bicubic: bool
) -> NDArray[np.float64]:
    """Resample the first axis of an array over [start, start + length) to ``count`` values, each by its definition.

    Antialiased: where it shrinks, the kernel is stretched by the factor; where the kernel leaves the array it is cut
    off and its weights are normalised.
    """
    kernel, radius = (cubic, 2.0) if bicubic else (triangle, 1.0)
    factor = length / count
    stretch = max(factor, 1.0)
    rows = []
    for index in range(count):
        centre = start + (index + 0.5) * factor
        weights = np.array([kernel((pixel + 0.5 - centre) / stretch) for pixel in range(len(values))])
        # Pillow uses whole pixels whose centre lies within the radius, rounded to the nearest.
        first, last = int(centre - radius * stretch + 0.5), int(centre + radius * stretch + 0.5)
        weights[: max(first, 0)] = 0
        weights[last:] = 0
        rows.append(np.tensordot(weights / weights.sum(), values, axes=1))
    return np.stack(rows)


def slow_square(spec: PreprocessSpec, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    height, width = pixels.shape[:2]
    box_w, box_h = float(width), float(height)
    if spec.resize_px:
        box_w = box_h = min(width, height) * spec.size_px / spec.resize_px
    bicubic = spec.filter == "bicubic"
    across = pixels.astype(np.float64).transpose(1, 0, 2)
    across = np.clip(slow_axis(across, (width - box_w) / 2, box_w, spec.size_px, bicubic), 0, 255)
    down = across.transpose(1, 0, 2)
    return np.clip(slow_axis(down, (height - box_h) / 2, box_h, spec.size_px, bicubic), 0, 255)


@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize_px", [0, 24, 30])
@pytest.mark.parametrize(("width", "height"), [(90, 60), (61, 97), (24, 24), (10, 7)])
def test_the_square_is_the_resampled_centre_by_an_independent_slow_computation(
    width: int, height: int, resize_px: int, filter: str
) -> None:
    spec = PreprocessSpec(size_px=24, resize_px=resize_px, filter=filter)
    pixels = waves(width, height)
    ours = preprocess.apply(spec, pixels)
    assert ours.shape == (24, 24, 3)
    assert ours.dtype == np.uint8
    # Ours is rounded to whole grey levels twice, once for each axis; the slow one is not rounded at all.
    assert np.abs(ours - slow_square(spec, pixels)).max() < 1.2


@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 300), (256, 256)])
def test_one_resampling_agrees_with_resizing_first_and_cropping_then(width: int, height: int) -> None:
    pixels = waves(width, height)
    scale = 64 / min(width, height)
    resized = Image.fromarray(pixels).resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
    left, top = (resized.width - 56) // 2, (resized.height - 56) // 2
    cropped = np.asarray(resized.crop((left, top, left + 56, top + 56)))
    ours = preprocess.apply(PreprocessSpec(size_px=56, resize_px=64), pixels)
    assert np.abs(ours.astype(int) - cropped.astype(int)).mean() < 0.5


def test_an_image_of_the_right_size_is_unchanged() -> None:
    pixels = waves(32, 32)
    for resize_px in (0, 32):
        np.testing.assert_array_equal(preprocess.apply(PreprocessSpec(size_px=32, resize_px=resize_px), pixels), pixels)


def test_without_resize_px_the_whole_image_is_squeezed_into_the_square() -> None:
    pixels = np.zeros((10, 40, 3), np.uint8)
    pixels[:, 20:] = 255
    square = preprocess.apply(PreprocessSpec(size_px=20), pixels)
    assert (square[:, :9] == 0).all()
    assert (square[:, 11:] == 255).all()


def test_with_resize_px_only_the_centre_remains() -> None:
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = 255
    assert (preprocess.apply(PreprocessSpec(size_px=20, resize_px=20), pixels) == 255).all()


@pytest.mark.parametrize(("width", "height"), [(1, 60_000), (60_000, 1), (1, 1)])
@pytest.mark.parametrize("resize_px", [0, 256])
def test_an_image_of_extreme_shape_costs_no_more_than_its_pixels(width: int, height: int, resize_px: int) -> None:
    pixels = np.full((height, width, 3), 77, np.uint8)
    start = time.process_time()
    square = preprocess.apply(PreprocessSpec(size_px=224, resize_px=resize_px), pixels)
    # Resizing the shorter side to 256 first would make 15 million × 256 pixels; this takes about a millisecond.
    assert time.process_time() - start < 1.0
    assert square.shape == (224, 224, 3)
    assert (square == 77).all()


def test_load_is_decode_and_apply() -> None:
    pixels = waves(300, 200)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    spec = PreprocessSpec(size_px=56, resize_px=64)
    np.testing.assert_array_equal(preprocess.load(spec, out.getvalue()), preprocess.apply(spec, pixels))


def test_a_scaled_jpeg_decode_changes_the_square_by_less_than_a_grey_level() -> None:
    out = io.BytesIO()
    Image.fromarray(waves(1600, 1200)).save(out, "JPEG", quality=95)
    spec = PreprocessSpec(size_px=112, resize_px=128)
    full = np.asarray(Image.open(out).convert("RGB"))
    drift = np.abs(preprocess.load(spec, out.getvalue()).astype(int) - preprocess.apply(spec, full).astype(int))
    assert drift.mean() < 0.7

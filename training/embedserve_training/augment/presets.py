"""Recipes by name: the published ones, and some for images that recipes for photographs do not suit.

A preset is one recipe for all views, or one each for the first and the second view. The numbers for products,
radiographs and microscopy are chosen for the reasons given; they were not measured on such data.
"""

from __future__ import annotations

from dataclasses import replace

from embedserve_training.augment.recipe import Augmentation

# SimCLR on ImageNet, colour strength s = 1 (arXiv 2002.05709, appendix A).
_PHOTO = Augmentation()

# Barlow Twins (arXiv 2103.03230, section 2.2: the views of BYOL, arXiv 2006.07733, appendix; numbers as in the authors'
# main.py). The two views differ in blur and solarization.
_BARLOW = Augmentation(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, blur=1.0)

PRESETS: dict[str, tuple[Augmentation, ...]] = {
    "photo": (_PHOTO,),
    # SimCLR on CIFAR: s = 0.5 and no blur (appendix B.9).
    "small": (replace(_PHOTO, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur=0.0),),
    # MoCo v1 (arXiv 1911.05722, section 3.3) and Instance Discrimination (arXiv 1805.01978): jitter always applies. The
    # authors apply grayscale before the jitter, not after it; here the two commute.
    "moco-v1": (
        Augmentation(
            crop_scale=(0.2, 1.0),
            jitter=1.0,
            brightness=0.4,
            contrast=0.4,
            saturation=0.4,
            hue=0.4,
            blur=0.0,
        ),
    ),
    # MoCo v2 (arXiv 2003.04297, section 3).
    "moco-v2": (Augmentation(crop_scale=(0.2, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),),
    "barlow-twins": (_BARLOW, replace(_BARLOW, blur=0.1, solarize=0.2)),
    # CPC v1 (arXiv 1807.03748, section 3.2): a square of 256 pixels out of 300, flip, no colour. The method crops the
    # patches itself.
    "cpc": (
        Augmentation(
            crop_scale=((256 / 300) ** 2, (256 / 300) ** 2),
            crop_ratio=(1.0, 1.0),
            jitter=0.0,
            grayscale=1.0,
            blur=0.0,
        ),
    ),
    # Articles on a plain background, upright. Colour tells them apart: the hue hardly changes, and few views lose their
    # colour; some must, or the histogram alone solves the task (arXiv 2002.05709, figure 6). Customers' photographs are
    # tilted, less sharp, and partly hidden by a hand or a label.
    "product": (
        Augmentation(
            crop_scale=(0.3, 1.0),
            rotation=10.0,
            brightness=0.4,
            contrast=0.4,
            saturation=0.2,
            hue=0.02,
            grayscale=0.1,
            blur=0.3,
            cutout=0.25,
            cutout_area=(0.02, 0.15),
            cutout_fill="mean",
        ),
    ),
    # Radiographs have no colour. Orientation tells findings apart: no flips. A finding may be small, and a crop or blur
    # that removes it removes the meaning (so MoCo-CXR, arXiv 2010.05352, has neither): crops keep much of the image,
    # and the blur is slight. The patient's position varies (MoCo-CXR rotates by up to 10 degrees), and so does the
    # exposure (brightness, contrast, quantum noise).
    "xray": (
        Augmentation(
            crop_scale=(0.3, 1.0),
            rotation=10.0,
            flip=0.0,
            brightness=0.4,
            contrast=0.4,
            saturation=0.0,
            hue=0.0,
            grayscale=0.0,
            blur=0.3,
            blur_sigma=(0.1, 1.0),
            noise=0.3,
            noise_sigma=(0.005, 0.03),
        ),
    ),
    # A slide has no orientation: all eight, by flips and quarter turns, which need no resampling. Size is meaningful at
    # a fixed magnification: crops are moderate and almost square. Stains differ slightly between laboratories, focus
    # and camera noise between exposures.
    "microscopy": (
        Augmentation(
            crop_scale=(0.4, 1.0),
            crop_ratio=(0.9, 1.1),
            vertical_flip=0.5,
            quarter_turns=0.75,
            brightness=0.2,
            contrast=0.2,
            saturation=0.2,
            hue=0.05,
            grayscale=0.0,
            blur=0.5,
            blur_sigma=(0.1, 1.5),
            noise=0.3,
            noise_sigma=(0.005, 0.03),
        ),
    ),
}


def recipes_for(name: str, crop_min: float) -> tuple[Augmentation, ...]:
    """A preset whose crops have at least this share of the image's area; view v uses recipe v modulo their number."""
    return tuple(
        replace(recipe, crop_scale=(crop_min, max(recipe.crop_scale[1], crop_min))) for recipe in PRESETS[name]
    )

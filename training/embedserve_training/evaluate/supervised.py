"""The same network trained on labels: what an encoder could reach if every image were labelled.

It is a row of ``evaluate`` and is never served: one augmented view, cross-entropy, AdamW.

Shapes: N images, B per batch, T side in pixels, C = 3 channels, D values of h, L labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from embedserve.errors import DataError
from embedserve_training import augment
from embedserve_training.data.batches import Batches
from embedserve_training.networks.backbones import SMALL_CNN, Backbone
from embedserve_training.run import optim, served
from embedserve_training.run.served import ServedEncoder
from embedserve_training.seeds import seed_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedserve_training.plan.config import Settings

_WARMUP = 0.1
_WEIGHT_DECAY = 0.05


class SupervisedEncoder(ServedEncoder):
    """A network and its classifier.

    Args:
        backbone: the network.
        labels: L.
    """

    def __init__(self, backbone: Backbone, labels: int) -> None:
        super().__init__(backbone)
        self.classifier = nn.Linear(backbone.dimension, labels)

    def classify(self, images_NSSC: NDArray[np.uint8], batch_size: int = 128) -> NDArray[np.int64]:
        """The label that the classifier gives each image, uint8 [N, S, S, 3]: [N]."""
        parts = []
        with torch.inference_mode():
            for start in range(0, len(images_NSSC), batch_size):
                images_BSSC = torch.from_numpy(np.ascontiguousarray(images_NSSC[start : start + batch_size]))
                h_BD = self.backbone(images_BSSC.permute(0, 3, 1, 2).float() / 255)
                parts.append(self.classifier(h_BD).argmax(dim=1).numpy())
        labels_N: NDArray[np.int64] = np.concatenate(parts)
        return labels_N


def train_supervised(
    settings: Settings,
    pixels_NTTC: NDArray[np.uint8],
    labels_N: NDArray[np.int64],
    *,
    epochs: int,
    report: Callable[[str], None],
) -> SupervisedEncoder:
    """Train the network of a run on labels, from the same first weights and with the same augmentations.

    Args:
        settings: of the run; its method and optimiser are not used.
        pixels_NTTC: uint8.
        labels_N: 0 to L − 1.
        epochs: passes over the images.
        report: called with each line of text.

    Returns:
        The encoder, in evaluation mode on the CPU.

    Raises:
        DataError: a batch would hold a single image, which batch-norm cannot normalise.
    """
    batch_size = min(settings.batch_size, len(pixels_NTTC))
    if batch_size < 2:
        raise DataError(
            f"supervised training needs 2 images in a batch, but of {len(pixels_NTTC)} there is {batch_size}",
            hint="give a folder with more readable images, or leave out --supervised-epochs",
        )
    device = _device(settings.device)
    recipe = augment.recipes_for(settings.augmentation, settings.crop_min)[0]
    batches = Batches(pixels_NTTC, batch_size, settings.seed, device)
    with torch.random.fork_rng(devices=[]), closing(batches.start_at(0)) as source:
        torch.manual_seed(settings.seed)  # for networks with dropout
        network = SupervisedEncoder(served.untrained(settings).backbone, int(labels_N.max()) + 1).to(device).train()
        at_256 = 0.01 if settings.backbone == SMALL_CNN else 0.002
        highest_lr = at_256 * math.sqrt(batches.batch_size / 256)
        optimizer = torch.optim.AdamW(optim.parameter_groups(network, _WEIGHT_DECAY), lr=0.0)
        device_labels_N = torch.from_numpy(labels_N).to(device)
        generator = torch.Generator()
        steps = epochs * batches.per_epoch
        for step in range(steps):
            indices_B, pixels_BTTC = next(source)
            optim.set_lr(optimizer, highest_lr * optim.lr_factor((step + 0.5) / steps, _WARMUP))
            generator.manual_seed(seed_of(settings.seed, "supervised views", step))
            view_BCSS = augment.augment(pixels_BTTC, settings.size_px, recipe, generator)
            loss = F.cross_entropy(network.classifier(network.backbone(view_BCSS)), device_labels_N[indices_B])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if (step + 1) % batches.per_epoch == 0:
                report(f"supervised  epoch {(step + 1) // batches.per_epoch}/{epochs}  loss {loss.item():.3f}")
    return network.cpu().eval()


def _device(name: str) -> torch.device:
    """The device of the run, or the CPU where it is not available."""
    available = (name == "cuda" and torch.cuda.is_available()) or (name == "mps" and torch.backends.mps.is_available())
    return torch.device(name if available else "cpu")

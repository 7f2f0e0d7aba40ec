"""The encoder of a run in PyTorch, which computes exactly what the exported graph computes.

Shapes: N images, S side in pixels, D numbers per embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedserve.images.preprocess import PreprocessSpec
from embedserve_training import methods
from embedserve_training.data.cache import cached_spec, find_cache
from embedserve_training.networks.backbones import Backbone
from embedserve_training.networks.whitening import Whitening, fit_to_images
from embedserve_training.plan.config import Settings
from embedserve_training.run import checkpoint, run_folder
from embedserve_training.run.checkpoint import Checkpoint
from embedserve_training.run.run_folder import StoredPlan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class ServedEncoder(nn.Module):
    """A backbone and the layers that the encoder file adds to it: uint8 pixels in, unit vectors out.

    The embedding is the backbone's output h, whitened, not the projection z (SimCLR, arXiv 2002.05709, section 4.2).

    Args:
        backbone: images in, h out.
        whitening: the last layer; None: h is not whitened.
    """

    def __init__(self, backbone: Backbone, whitening: Whitening | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.whitening: nn.Module = whitening or nn.Identity()

    @property
    def is_whitened(self) -> bool:
        """Whether it ends with a whitening layer."""
        return isinstance(self.whitening, Whitening)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [N, S, S, 3] → float32 [N, D] with unit norm."""
        x_NCSS = images.permute(0, 3, 1, 2).float() / 255
        return F.normalize(self.whitening(self.backbone(x_NCSS)), dim=1)


def trained(run: Path) -> ServedEncoder:
    """The encoder of a run, in evaluation mode on the CPU.

    Raises:
        TrainingError: the folder holds no run.
    """
    plan = run_folder.read_plan(run)
    settings = plan.settings
    method = methods.build(settings, int(plan.data["images"]))
    saved = checkpoint.load(run)
    checkpoint.load_weights(method, saved, run)
    return ServedEncoder(method.backbone, _whitening(run, plan, saved, method.backbone)).eval()


def _whitening(run: Path, plan: StoredPlan, saved: Checkpoint, backbone: Backbone) -> Whitening | None:
    """The last layer of a run's encoder; for a run that was killed it is fitted to the cached images."""
    if not plan.settings.whiten:
        return None
    if saved.whitening:
        return Whitening.from_state(saved.whitening)
    spec = cached_spec(PreprocessSpec.from_json(dict(plan.preprocess)), int(plan.data["cached_side_px"]))
    images = find_cache(run / run_folder.CACHE, spec, str(plan.data["fingerprint"]))
    if images is None:
        return None
    whole = sees_whole_images(plan.preprocess)
    return fit_to_images(backbone, images.pixels_NTTC, plan.settings.size_px, whole=whole)


def sees_whole_images(preprocess: Mapping[str, Any]) -> bool:
    """Whether an encoder with this preprocessing sees images whole, and not without a margin."""
    return preprocess["resize_px"] in (0, preprocess["size_px"])


def untrained(settings: Settings) -> ServedEncoder:
    """The encoder with which a run of these settings starts: same network, same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        # The encoder has no part of the method's memory, so memory for one image is enough.
        return ServedEncoder(methods.build(settings, 1).backbone).eval()


def embed(encoder: ServedEncoder, images_NSSC: NDArray[np.uint8], batch_size: int = 128) -> NDArray[np.float32]:
    """Embed preprocessed images: uint8 [N, S, S, 3] → float32 [N, D] with unit norm."""
    import numpy as np

    with torch.inference_mode():
        parts = [
            encoder(torch.from_numpy(np.ascontiguousarray(images_NSSC[start : start + batch_size]))).numpy()
            for start in range(0, len(images_NSSC), batch_size)
        ]
    vectors: NDArray[np.float32] = np.concatenate(parts)
    return vectors

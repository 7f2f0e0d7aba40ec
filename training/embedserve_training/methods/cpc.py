"""CPC: from the upper rows of an image's patches, predict which patches lie below.

Van den Oord, Li, Vinyals: Representation Learning with Contrastive Predictive Coding, arXiv 1807.03748, section 3.2;
more directions and layer norm as in Hénaff et al., arXiv 1905.09272. The encoder sees single patches and has no
batch-norm, which would leak the patches to be predicted. The served encoder is the same network given whole images:
its neighbours were better than those of any mean over patches (measured in docs/decisions.md).

Shapes: B images, G × G patches of P × P pixels in each, D numbers per patch, K predicted rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedserve_training.distributed.collectives import SINGLE_PROCESS, Processes
from embedserve_training.losses import cpc_chance, cpc_info_nce
from embedserve_training.methods.method import LossReferences, Method, StepOutput
from embedserve_training.methods.patches import Patches, crop_and_pad
from embedserve_training.networks import backbones, batch_norm
from embedserve_training.networks.backbones import Backbone
from embedserve_training.plan.config import Settings


class CPC(Method):
    """The method of section 3.2 of arXiv 1807.03748.

    Args:
        backbone: g_enc, the encoder of a patch; its batch-norm is replaced by layer norm.
        patches: how an image is cut into patches.
        predict_steps: K, at most G − 1.
        directions: 1 predicts downwards, 2 upwards too, 4 sideways too.
        processes: rank and number of the processes that train together.
    """

    views = 1

    def __init__(
        self,
        backbone: Backbone,
        patches: Patches,
        *,
        predict_steps: int = 5,
        directions: int = 1,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        super().__init__(backbone, processes)
        batch_norm.to_layer_norm(backbone)
        self.patches, self.predict_steps = patches, predict_steps
        self.quarter_turns = {1: (0,), 2: (0, 2), 4: (0, 1, 2, 3)}[directions]
        self.contexts = nn.ModuleList(RowContext(backbone.dimension) for _ in self.quarter_turns)
        self.predictors = nn.ModuleList(
            nn.ModuleList(_predictor(backbone.dimension) for _ in range(predict_steps)) for _ in self.quarter_turns
        )

    @classmethod
    def from_settings(cls, settings: Settings, backbone: Backbone, images: int, processes: Processes) -> Self:
        """The method with the settings of a run."""
        backbones.check_runs(backbone, settings.patch_px)
        return cls(
            backbone,
            Patches(size_px=settings.size_px, patch_px=settings.patch_px, grid=settings.patch_grid),
            predict_steps=settings.predict_steps,
            directions=settings.directions,
            processes=processes,
        )

    def forward(self, views_VBCSS: Sequence[Tensor], indices_B: Tensor, generator: torch.Generator) -> StepOutput:
        """The mean of the losses (equation 4) of all directions and distances."""
        grid = self.patches.grid
        patches_NCPP = self.patches.cut(views_VBCSS[0])
        patches_NCPP = crop_and_pad(patches_NCPP, generator, self.processes)
        z_BDGG = self.backbone(patches_NCPP).unflatten(0, (-1, grid, grid)).permute(0, 3, 1, 2)
        losses, hits = [], []
        for quarter_turns, context, predictors in zip(self.quarter_turns, self.contexts, self.predictors, strict=True):
            rotated_BDGG = torch.rot90(z_BDGG, quarter_turns, (2, 3))
            c_BDGG = context(rotated_BDGG)
            assert isinstance(predictors, nn.ModuleList)
            for step, predict in enumerate(predictors, start=1):
                predicted_ND = _rows(predict(c_BDGG[:, :, :-step]))
                loss, diagnostics = cpc_info_nce(predicted_ND, _rows(rotated_BDGG[:, :, step:]), self.processes.gather)
                losses.append(loss)
                hits.append(diagnostics["top1"])
        return StepOutput(
            loss=torch.stack(losses).mean(),
            features_ND=z_BDGG.detach().mean((2, 3)),
            projections_ND=_rows(z_BDGG.detach()),
            views=1,
            diagnostics={"top1": torch.stack(hits).mean()},
        )

    def loss_references(self, global_batch: int) -> LossReferences:
        """ln of the number of candidates, averaged over distances."""
        grid, steps = self.patches.grid, range(1, self.predict_steps + 1)
        chance = sum(cpc_chance(global_batch * grid * (grid - step)) for step in steps) / self.predict_steps
        return LossReferences(chance=chance, collapse=chance)


class RowContext(nn.Module):
    """g_ar: a summary of the patch rows down to each place, by convolutions that do not look below it, as in PixelCNN.

    Args:
        dimension: D.
        layers: residual layers; each looks one row further up and one place further to either side.
    """

    def __init__(self, dimension: int, layers: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                nn.Conv2d(dimension, dimension // 2, 1),
                nn.ReLU(),
                nn.ZeroPad2d((1, 1, 1, 0)),  # left, right, above: nothing below
                nn.Conv2d(dimension // 2, dimension // 2, (2, 3)),
                nn.ReLU(),
                nn.Conv2d(dimension // 2, dimension, 1),
            )
            for _ in range(layers)
        )

    def forward(self, z_BDGG: Tensor) -> Tensor:
        """Float [B, D, G, G] → the same shape."""
        c_BDGG = z_BDGG
        for layer in self.layers:
            c_BDGG = c_BDGG + layer(c_BDGG)
        return F.relu(c_BDGG)


def _predictor(dimension: int) -> nn.Conv2d:
    """W_k of equation 3, near zero: scores are not normalised, and a run should start at chance."""
    predictor = nn.Conv2d(dimension, dimension, 1, bias=False)
    nn.init.normal_(predictor.weight, std=1 / dimension)
    return predictor


def _rows(x_BDHW: Tensor) -> Tensor:
    """[B, D, H, W] → one row per patch, [B·H·W, D]."""
    return x_BDHW.permute(0, 2, 3, 1).flatten(0, 2)

"""Backbones without classifiers, their small-image stem, and projection heads."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from embedserve.errors import InvalidInput
from embedserve_training.networks import backbones
from embedserve_training.networks.heads import projector


@pytest.mark.parametrize(
    ("name", "size_px", "dimension"),
    [
        ("small-cnn", 28, backbones.SmallCNN.DIMENSION),
        ("resnet18", 32, 512),
        ("resnet50", 64, 2048),
        ("convnext_tiny", 64, 768),
        ("mobilenet_v3_small", 64, 1024),
        ("efficientnet_b0", 64, 1280),
        ("vit_b_16", 32, 768),
    ],
)
def test_a_backbone_gives_one_vector_per_image(name: str, size_px: int, dimension: int) -> None:
    backbone = backbones.build(name, size_px).eval()
    assert backbone.dimension == dimension
    assert backbone(torch.rand(3, 3, size_px, size_px)).shape == (3, dimension)


@pytest.mark.parametrize("size_px", [9, 16, 28, 33, 63])
def test_small_cnn_takes_every_small_size(size_px: int) -> None:
    backbone = backbones.build("small-cnn", size_px).eval()
    assert backbone(torch.rand(2, 3, size_px, size_px)).shape == (2, 256)


def test_small_cnn_keeps_the_quadrant_of_a_feature() -> None:
    body = backbones.build("small-cnn", 32).eval().body
    image = torch.zeros(1, 3, 32, 32)
    image[..., :8, :8] = 1.0  # upper left
    change = (body(image) - body(torch.zeros(1, 3, 32, 32))).abs().view(-1, 2, 2).sum(0)
    assert change.flatten().argmax() == 0


@pytest.mark.parametrize(("size_px", "side"), [(64, 8), (96, 3)])
def test_a_resnet_keeps_the_pixels_of_small_images(size_px: int, side: int) -> None:
    body = backbones.build("resnet18", size_px).body
    sides = []
    body.layer4.register_forward_hook(lambda module, given, y: sides.append(y.shape[-1]))  # type: ignore[union-attr]
    body.eval()(torch.rand(1, 3, size_px, size_px))
    assert sides == [side]


def test_the_seed_decides_the_weights() -> None:
    def first_weight(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return next(backbones.build("small-cnn", 16).parameters()).detach()

    assert torch.equal(first_weight(1), first_weight(1))
    assert not torch.equal(first_weight(1), first_weight(2))


def test_an_unknown_backbone_is_refused_with_examples() -> None:
    with pytest.raises(InvalidInput, match="no backbone 'resnet19'") as caught:
        backbones.build("resnet19", 32)
    assert "resnet18" in caught.value.hint


def test_a_backbone_that_cannot_take_the_size_is_refused_before_training() -> None:
    with pytest.raises(InvalidInput, match="does not take images of 20 px"):
        backbones.build("vit_b_16", 20)


def test_building_leaves_a_backbone_untouched_by_data() -> None:
    backbone = backbones.build("small-cnn", 16)
    assert backbone.training
    assert all(m.num_batches_tracked == 0 for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_projector_has_batch_norm_after_every_layer_and_no_bias_before_it(layers: int) -> None:
    head = projector(10, 20, 5, layers, batch_norm="all")
    linear = [module for module in head if isinstance(module, nn.Linear)]
    assert len(linear) == layers
    assert all(module.bias is None for module in linear)
    followers = [type(after) for module, after in itertools.pairwise(head) if isinstance(module, nn.Linear)]
    assert followers == [nn.BatchNorm1d] * layers
    assert head(torch.rand(4, 10)).shape == (4, 5)


def test_the_last_batch_norm_of_the_projector_has_no_learnable_centre() -> None:
    last = projector(10, 20, 5, 2, batch_norm="all")[-1]
    assert not last.bias.requires_grad
    assert last.weight.requires_grad


@pytest.mark.parametrize(("batch_norm", "norms", "biases"), [("hidden", 2, 0), ("none", 0, 3)])
def test_heads_without_batch_norm_after_the_last_layer(batch_norm: Any, norms: int, biases: int) -> None:
    head = projector(10, 20, 5, 3, batch_norm=batch_norm)
    assert isinstance(head[-1], nn.Linear)
    assert sum(isinstance(module, nn.BatchNorm1d) for module in head) == norms
    assert sum(isinstance(module, nn.Linear) and module.bias is not None for module in head) == biases

"""Every network that torchvision names for classification can be trained, at some size; others are refused with why."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

from embedserve.errors import InvalidInput
from embedserve_training.networks import backbones

NAMES = models.list_models(module=models)
NOT_AT_96_PX = {"maxvit_t": 224, "vit_h_14": 224}
"""Networks whose windows or patches do not divide 96 px, with the nearest side that they take."""
STEMS = {name for name in NAMES if name.startswith(("resnet", "resnext", "wide_resnet"))}


@pytest.mark.parametrize("name", NAMES)
def test_every_torchvision_network_gives_one_vector_per_image(name: str) -> None:
    # Without data: the weights of regnet_y_128gf alone take 2.6 GB.
    size_px = NOT_AT_96_PX.get(name, 96)
    with torch.device("meta"):
        backbone = backbones.build(name, size_px).eval()
        shape = backbone(torch.zeros(2, 3, size_px, size_px)).shape
    assert shape == (2, backbone.dimension)
    assert 256 <= backbone.dimension <= 7392
    assert all(weight.device.type == "meta" for weight in backbone.parameters())
    # Nothing is left that depends on the 1,000 classes.
    assert not [layer for layer in backbone.modules() if getattr(layer, "out_features", 0) == 1000]


@pytest.mark.parametrize("name", sorted(STEMS))
def test_every_resnet_has_the_stem_for_small_images_up_to_64_px(name: str) -> None:
    with torch.device("meta"):
        stems = [backbones.build(name, size_px).body for size_px in (64, 96)]
    found = [(body.conv1.stride, isinstance(body.maxpool, nn.Identity)) for body in stems]
    assert found == [((1, 1), True), ((2, 2), False)]


@pytest.mark.parametrize("name", ["regnet_x_400mf", "regnet_y_400mf", "squeezenet1_1"])
def test_what_is_built_without_data_has_the_weights_of_the_real_network(name: str) -> None:
    with torch.device("meta"):
        without = backbones.build(name, 64)
    real = backbones.build(name, 64)
    shapes = [{key: value.shape for key, value in one.state_dict().items()} for one in (without, real)]
    assert shapes[0] == shapes[1]
    assert real.eval()(torch.rand(2, 3, 64, 64)).shape == (2, without.dimension)


@pytest.mark.parametrize(("name", "size_px"), sorted(NOT_AT_96_PX.items()))
def test_a_network_that_does_not_take_a_size_names_the_nearest_that_it_takes(name: str, size_px: int) -> None:
    with torch.device("meta"), pytest.raises(InvalidInput, match="does not take images of 96 px: ") as refused:
        backbones.build(name, 96)
    assert refused.value.hint == f"--size-px {size_px}"


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet19", "resnet18"), ("ResNet-50", "resnet50"), ("vit_b16", "vit_b_16"), ("smallcnn", "small-cnn")],
)
def test_a_misspelt_name_is_refused_with_near_ones(name: str, near: str) -> None:
    with pytest.raises(InvalidInput, match="there is no backbone") as refused:
        backbones.build(name, 32)
    assert near in refused.value.hint.partition("?")[0]


@pytest.mark.parametrize("name", ["fcn_resnet50", "raft_small", "maskrcnn_resnet50_fpn", "r3d_18"])
def test_a_network_for_another_task_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(InvalidInput, match="does not give one vector per image"):
        backbones.build(name, 96)

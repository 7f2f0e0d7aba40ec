"""Backbones: images in, embeddings h out. torchvision's by name, and a small one for the CPU.

Shapes: B images, C = 3 channels, S side in pixels, D numbers per embedding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from embedserve.errors import InvalidInput
from embedserve.nearest import meant
from embedserve_training.plan.sizes import SMALL_CNN as SMALL_CNN
from embedserve_training.plan.sizes import is_small

# One value for all channels, so that grey stays grey. SimCLR itself feeds [0, 1]; networks without batch-norm after
# the first convolution (ConvNeXt, ViT) need centred input.
_MEAN, _STD = 0.5, 0.25
_CLASSIFIERS = ("fc", "classifier", "heads", "head")


class Backbone(nn.Module):
    """A network without its classifier, with the normalisation of its input.

    Args:
        body: float [B, 3, S, S] → [B, D].
        name: its name in ``build``.
        dimension: D.
    """

    def __init__(self, body: nn.Module, name: str, dimension: int) -> None:
        super().__init__()
        self.body = body
        self.name = name
        self.dimension = dimension

    def forward(self, images_BCSS: Tensor) -> Tensor:
        """Float [B, 3, S, S] within [0, 1] → embeddings [B, D] of any norm."""
        h_BD: Tensor = self.body((images_BCSS - _MEAN) / _STD)
        return h_BD


def build(name: str, size_px: int) -> Backbone:
    """A backbone with fresh weights from torch's global generator.

    Args:
        name: "small-cnn" or a classification model of torchvision, as in "resnet18" or "convnext_tiny".
        size_px: side of the images. For small ones ResNets get a 3 × 3 stem without max-pooling, which does not
            discard three quarters of their pixels at once (the CIFAR variant of SimCLR, arXiv 2002.05709, appendix
            B.9).

    Raises:
        InvalidInput: the backbone does not exist, or does not work at this size.
    """
    try:
        return _build(name, size_px)
    except _Unfit as error:
        raise InvalidInput(
            f"backbone {name!r} does not take images of {size_px} px: {error}", hint=_other_size(name, size_px)
        ) from error


class _Unfit(Exception):
    """A network does not take images of a size; the text says why."""


_USUAL_SIZES_PX = (32, 64, 96, 128, 160, 192, 224, 299, 384)


def _build(name: str, size_px: int) -> Backbone:
    body, dimension = (SmallCNN(), SmallCNN.DIMENSION) if name == SMALL_CNN else _torchvision(name, size_px)
    backbone = Backbone(body, name, dimension)
    _check_runs(backbone, size_px)
    return backbone


def _other_size(name: str, size_px: int) -> str:
    """The nearest usual side that the network takes, as a flag."""
    for other in sorted(_USUAL_SIZES_PX, key=lambda side: abs(side - size_px)):
        try:
            with torch.device("meta"):
                _build(name, other)
        except _Unfit:
            continue
        return f"--size-px {other}"
    return "try another --backbone, such as resnet18"


def names() -> list[str]:
    """The networks that can be trained: small-cnn, and torchvision's for classification."""
    from torchvision import models

    return [SMALL_CNN, *models.list_models(module=models)]


def _torchvision(name: str, size_px: int) -> tuple[nn.Module, int]:
    from torchvision import models

    if name not in names():
        raise _unknown(name)
    sized: dict[str, Any] = {"image_size": size_px} if name.startswith("vit_") else {}
    # Without these arguments Inception and GoogLeNet warn that their initialisation is slow.
    sized |= {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    sized |= {"input_size": (size_px, size_px)} if name == "maxvit_t" else {}
    try:
        body = _without_data(functools.partial(models.get_model, name, weights=None, **sized))
    except (AssertionError, ValueError) as error:  # patches or windows that do not divide the image
        raise _Unfit(error) from error
    dimension = _drop_classifier(body, name)
    if is_small(size_px) and isinstance(body, models.ResNet):
        body.conv1 = nn.Conv2d(3, body.conv1.out_channels, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
        body.maxpool = nn.Identity()
    return body, dimension


def _unknown(name: str) -> InvalidInput:
    from torchvision import models

    if name in models.list_models():
        reason = f"backbone {name!r} does not give one vector per image: it finds objects, segments, or reads videos"
    else:
        reason = f"there is no backbone {name!r}"
    others = f'"{SMALL_CNN}" or a torchvision model such as resnet18, resnet50, convnext_tiny'
    return InvalidInput(reason, hint=meant(name, [SMALL_CNN, *names()], others))


class _WeightsWithoutData(TorchFunctionMode):
    """Weights are made on the meta device, and the small tensors from which a network computes its widths are real."""

    _MAKE_WEIGHTS = (torch.empty, torch.zeros, torch.ones)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self._MAKE_WEIGHTS:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def _without_data(make: Callable[[], nn.Module]) -> nn.Module:
    """The network, on the default device. Where that is meta, RegNets are made with real tensors for their widths.

    They read numbers from tensors while they are built, and a tensor on the meta device has none.
    """
    try:
        return make()
    except NotImplementedError:
        if torch.get_default_device().type != "meta":
            raise
    with torch.device("cpu"), _WeightsWithoutData():
        return make().to("meta")


def _drop_classifier(body: nn.Module, name: str) -> int:
    """Remove the last linear layer; the number of its inputs."""
    for attribute in _CLASSIFIERS:
        head = getattr(body, attribute, None)
        if isinstance(head, nn.Linear):
            setattr(body, attribute, nn.Identity())
            return head.in_features
        if isinstance(head, nn.Sequential) and len(head) == 4 and isinstance(head[1], nn.Conv2d):
            features = head[1].in_channels  # SqueezeNet: dropout, a convolution to classes, ReLU, mean
            head[0] = head[1] = nn.Identity()
            return features
        if isinstance(head, nn.Sequential) and isinstance(head[-1], nn.Linear):
            features = head[-1].in_features
            head[-1] = nn.Identity()
            return features
    raise InvalidInput(f"backbone {name!r} has no classifier that can be removed", hint="try resnet18")


def check_runs(backbone: Backbone, patch_px: int) -> None:
    """Check that the backbone gives one embedding for each patch of this side.

    Raises:
        InvalidInput: it does not.
    """
    try:
        _check_runs(backbone, patch_px)
    except _Unfit as error:
        raise InvalidInput(
            f"backbone {backbone.name!r} does not take patches of {patch_px} px: {error}",
            hint="a larger --size-px, or --set patch_px=…",
        ) from error


def _check_runs(backbone: Backbone, size_px: int) -> None:
    backbone.eval()
    try:
        with torch.no_grad():
            shape = tuple(backbone(torch.zeros(2, 3, size_px, size_px)).shape)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise _Unfit(" ".join(str(error).split())) from error
    if shape != (2, backbone.dimension):
        raise InvalidInput(
            f"backbone {backbone.name!r} gives {shape}, not one embedding per image", hint="try resnet18"
        )
    backbone.train()


class SmallCNN(nn.Module):
    """A compact residual network that learns on two CPU cores within minutes at 28–32 px.

    A stem of stride 2, one residual block each with 32, 64 and 128 channels, a reduction to 64, and the mean of each
    quadrant of the image: 0.3 million weights. The reasons, measured on 3,000 images of Fashion-MNIST (share of the
    same label among the 10 nearest, after SimCLR has seen 59,000 images):

    * Quadrants reach 73.3 %, one mean over the whole image 71.0 %: small images are mostly centred, so the position of
      a feature carries information.
    * One block per stage sees twice as many images per second as two (690 against 350 per core), which is worth more
      than depth in minutes of training.
    * The last batch-norm, without weights, gives every dimension the same spread. Without it the means are all positive
      and their cosines close together: the vote of 200 neighbours gains 3.5 points.
    """

    DIMENSION = 256

    def __init__(self) -> None:
        super().__init__()
        before = 32
        layers: list[nn.Module] = [_conv(3, before, 3, stride=2), nn.BatchNorm2d(before), nn.ReLU(inplace=True)]
        for width, stride in ((32, 1), (64, 2), (128, 2)):
            layers.append(Residual(before, width, stride))
            before = width
        reduced = self.DIMENSION // 4
        layers += [_conv(before, reduced, 1, stride=1), nn.BatchNorm2d(reduced), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.norm = nn.BatchNorm1d(self.DIMENSION, affine=False)

    def forward(self, x_BCSS: Tensor) -> Tensor:
        """Float [B, 3, S, S] → [B, D]; S at least 9."""
        y_BCHH: Tensor = self.layers(x_BCSS)
        side = y_BCHH.shape[2]
        # If the side is odd, quadrants share the middle row and column.
        quadrants_BC22 = F.avg_pool2d(y_BCHH, (side + 1) // 2, stride=side // 2)
        h_BD: Tensor = self.norm(quadrants_BC22.flatten(1))
        return h_BD


class Residual(nn.Module):
    """Two 3 × 3 convolutions and a shortcut, the basic block of ResNet (arXiv 1512.03385)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(before, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = _conv(width, width, 3, 1), nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != width:
            self.shortcut = nn.Sequential(_conv(before, width, 1, stride), nn.BatchNorm2d(width))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Float [B, before, H, W] → [B, width, H / stride, W / stride]."""
        y_BCHW = F.relu(self.norm1(self.conv1(x_BCHW)), inplace=True)
        return F.relu(self.norm2(self.conv2(y_BCHW)) + self.shortcut(x_BCHW), inplace=True)


def _conv(before: int, width: int, kernel: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(before, width, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv

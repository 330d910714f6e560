"""MobileNetV2 1.0 as a torch module, filled from folded ImageNet weights with its BatchNorms put back.

The published weights have BatchNorm folded into biases and expect TensorFlow's SAME padding. Both are undone here once:
padding becomes constants for one resolution (so that an exporter can write it as the `pads` of a Conv), and each
convolution gets a BatchNorm that holds the statistics of the network's own pre-activations and leaves the function as
it was. Without them narrower copies of the network do not train.

Architecture: Sandler et al. 2018, arXiv 1801.04381, table 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody reads
from torch import Tensor, nn

from builder.files import read_npz
from edge_runtime.errors import InputError

__all__ = ["MEAN", "STD", "InvertedResidual", "MobileNetV2", "load_folded", "recenter_batch_norms"]

MEAN = (0.5, 0.5, 0.5)
"""Subtracted from RGB pixels in [0, 1]; with `STD` this is the x / 127.5 - 1 that the weights expect."""

STD = (0.5, 0.5, 0.5)

_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, output channels, units, stride of the first unit (table 2 of the paper)."""

_FEATURES = 1280
_EPSILON = 1e-3
"""Of every BatchNorm, as in the network that the weights come from."""


def same_padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding of one axis: pixels before and after an input of `side` pixels."""
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm and, where asked, ReLU6; SAME padding for an input of `side` pixels."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        side: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        relu: bool = True,
    ) -> None:
        super().__init__()
        before, after = same_padding(side, kernel, stride)
        self.pads = (before, after, before, after) if before != after else None
        padding = before if self.pads is None else 0
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=_EPSILON)
        self.relu = nn.ReLU6() if relu else None

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [N, inputs, side, side] to [N, outputs, ceil(side / stride), ...]."""
        if self.pads is not None:
            x = F.pad(x, self.pads)
        x = self.bn(self.conv(x))
        return x if self.relu is None else self.relu(x)


class InvertedResidual(nn.Module):
    """Expand, filter by depth, project; added to the input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, *, side: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        out_side = -(-side // stride)
        layers = [] if expansion == 1 else [ConvNorm(inputs, inner, side=side)]
        layers.append(ConvNorm(inner, inner, side=side, kernel=3, stride=stride, groups=inner))
        layers.append(ConvNorm(inner, outputs, side=out_side, relu=False))
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [N, inputs, side, side] to [N, outputs, ceil(side / stride), ...]."""
        y = self.layers(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """MobileNetV2 1.0 for square RGB images of one fixed `resolution` (pixels), normalised with `MEAN` and `STD`.

    Input float32 [N, 3, resolution, resolution], output logits float32 [N, class_count].
    """

    def __init__(self, class_count: int, *, resolution: int = 112) -> None:
        super().__init__()
        if class_count < 2 or resolution < 32:
            raise InputError(
                f"MobileNetV2 with {class_count} classes at {resolution} px cannot be built",
                hint="it takes 2 classes and 32 px at least",
            )
        side = -(-resolution // 2)
        self.stem = ConvNorm(3, 32, side=resolution, kernel=3, stride=2)
        units: list[nn.Module] = []
        inputs = 32
        for expansion, outputs, count, first_stride in _STAGES:
            for index in range(count):
                stride = first_stride if index == 0 else 1
                units.append(InvertedResidual(inputs, outputs, side=side, stride=stride, expansion=expansion))
                inputs, side = outputs, -(-side // stride)
        self.units = nn.Sequential(*units)
        self.head = ConvNorm(inputs, _FEATURES, side=side)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(_FEATURES, class_count)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        x = self.head(self.units(self.stem(x)))
        return self.classifier(self.flatten(self.pool(x)))


def load_folded(model: MobileNetV2, path: Path) -> None:
    """Fill everything below the classifier from folded float16 weights (`NN_conv_w/b`, `NN_dw_w/b`, OHWI) at `path`.

    Biases go into the BatchNorms, which are the identity otherwise, so that the function is the folded network's.
    Raises `InputError` when the file is missing, unreadable or of another network.
    """
    layers = [module for module in model.modules() if isinstance(module, ConvNorm)]
    names = [f"{i:02d}_{'dw' if layer.conv.groups > 1 else 'conv'}" for i, layer in enumerate(layers)]
    hint = (
        "these are the folded MobileNetV2 1.0 weights, weights/mobilenet_v2_1.0_224_folded_f16.npz of the data folder"
    )
    arrays = read_npz(path, [f"{name}_{part}" for name in names for part in "wb"], hint=hint)
    for name, layer in zip(names, layers, strict=True):
        _fill(layer, arrays[f"{name}_w"].astype(np.float32), arrays[f"{name}_b"].astype(np.float32), hint)


def _fill(layer: ConvNorm, weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32], hint: str) -> None:
    depthwise = layer.conv.groups > 1
    shape = layer.conv.weight.shape
    stored = (1, *shape[2:], shape[0]) if depthwise else (shape[0], *shape[2:], shape[1])
    if weight.shape != stored or bias.shape != shape[:1]:
        raise InputError(f"a layer has weights of shape {weight.shape}, not {tuple(stored)}", hint=hint)
    kernel = torch.from_numpy(weight.transpose(3, 0, 1, 2) if depthwise else weight.transpose(0, 3, 1, 2))
    with torch.no_grad():
        layer.conv.weight.copy_(kernel)
        layer.bn.bias.copy_(torch.from_numpy(bias))
        layer.bn.weight.fill_((1.0 + _EPSILON) ** 0.5)
        layer.bn.running_mean.zero_()
        layer.bn.running_var.fill_(1.0)


@torch.no_grad()
def recenter_batch_norms(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give every BatchNorm2d the statistics of its own input over `batches`; in eval mode the function stays as it is.

    gamma becomes the standard deviation and beta the mean of what the BatchNorm put out, so that the scale and shift
    that it applies are the same and training starts from true statistics. Works for any network of BatchNorm2d.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    sums = {norm: [0, 0.0, 0.0] for norm in norms}

    def observe(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        values = args[0].double()
        entry = sums[norm]
        entry[0] += values.numel() // values.shape[1]
        entry[1] = entry[1] + values.sum((0, 2, 3))
        entry[2] = entry[2] + values.square().sum((0, 2, 3))

    was_training = model.training
    model.eval()
    handles = [norm.register_forward_pre_hook(observe) for norm in norms]
    try:
        for batch in batches:
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    for norm, (count, total, squares) in sums.items():
        if count == 0:
            raise InputError("no images to take the BatchNorm statistics from", hint="pass at least one batch")
        mean = total / count
        _rewrite(norm, mean, (squares / count - mean.square()).clamp_min(0.0))


def _rewrite(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    norm.weight.copy_(scale * (variance + norm.eps).sqrt())
    norm.bias.copy_(shift + mean * scale)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)

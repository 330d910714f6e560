"""The demo's oracle: a small inverted-residual CNN for 64-pixel images, with plain BatchNorms and ordinary padding.

Architecture after Sandler et al. 2018, arXiv 1801.04381 (expand 1x1, depthwise 3x3, linear projection, residual where
the shapes allow). Channel counts are multiples of 16, so that onnxruntime runs every convolution in its blocked layout.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from edge_runtime.errors import UsageError

__all__ = ["MEAN", "ORACLE", "SMALL", "STD", "DemoConfig", "DemoNet", "Stage"]

MEAN = (0.45, 0.45, 0.45)
"""Subtracted from RGB pixels in [0, 1]."""

STD = (0.25, 0.25, 0.25)


@dataclass(frozen=True, slots=True)
class Stage:
    """Units of one resolution; the first of them sets it. Raises `UsageError` when built invalid."""

    channels: int
    """Output channels of every unit, a multiple of 16."""
    units: int
    expansion: int
    """Hidden channels of a unit, as a multiple of its input channels."""

    def __post_init__(self) -> None:
        if self.channels < 16 or self.channels % 16 or self.units < 1 or self.expansion < 1:
            raise UsageError(
                f"a stage of {self.channels} channels, {self.units} units, expansion {self.expansion}",
                hint="channels in multiples of 16, at least one unit, expansion of at least 1",
            )


@dataclass(frozen=True, slots=True)
class DemoConfig:
    """Sizes of one network."""

    stem: tuple[int, ...]
    """Channels of the plain 3x3 convolutions at the entry, each of which halves the resolution."""
    stages: tuple[Stage, ...]
    head: int
    """Channels before the average over the image, a multiple of 16."""


ORACLE = DemoConfig(stem=(16, 32), stages=(Stage(32, 2, 3), Stage(64, 4, 4), Stage(112, 4, 4)), head=256)
"""The network that the demo makes elastic."""

SMALL = DemoConfig(stem=(16, 32), stages=(Stage(32, 1, 3), Stage(48, 2, 3), Stage(80, 2, 3)), head=128)
"""About 40 % of the oracle's latency; trained alone, it is what an elastic subnet has to beat."""


class ConvNorm(nn.Sequential):
    """Convolution without bias, BatchNorm and, where asked, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int = 1, stride: int = 1, groups: int = 1, relu: bool = True
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        if relu:
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; plus the input where shape and stride allow."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = ConvNorm(inputs, hidden)
        self.depthwise = ConvNorm(hidden, hidden, kernel=3, stride=stride, groups=hidden)
        self.project = ConvNorm(hidden, outputs, relu=False)
        self.residual = stride == 1 and inputs == outputs
        if self.residual:
            # Starts as the identity, so that the first epochs train a shallow network (He et al. 2019, 1812.01187).
            nn.init.zeros_(self.project[1].weight)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H / stride, W / stride], both float32."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class DemoNet(nn.Module):
    """Classifier of `classes` kinds of parts: stem, stages, head, average, one linear layer."""

    def __init__(self, classes: int = 16, config: DemoConfig = ORACLE) -> None:
        super().__init__()
        entry, channels = [], 3
        for width in config.stem:
            entry.append(ConvNorm(channels, width, kernel=3, stride=2))
            channels = width
        self.stem = nn.Sequential(*entry)
        stages = []
        for number, stage in enumerate(config.stages):
            units = []
            for index in range(stage.units):
                stride = 2 if index == 0 and number > 0 else 1
                units.append(InvertedResidual(channels, stage.channels, stride=stride, expansion=stage.expansion))
                channels = stage.channels
            stages.append(nn.Sequential(*units))
        self.stages = nn.Sequential(*stages)
        self.head = ConvNorm(channels, config.head)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(config.head, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits float32 [N, classes] of normalised images float32 [N, 3, H, W], H and W multiples of 32."""
        return self.classifier(self.pool(self.head(self.stages(self.stem(x)))).flatten(1))

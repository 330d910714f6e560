"""Two small networks of the kinds that the builder takes, with true-to-life BN statistics and seeded weights."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Bottleneck(nn.Module):
    """Inverted residual: expand, depthwise, project; with a shortcut where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = 4 * inputs
        self.body = nn.Sequential(
            nn.Conv2d(inputs, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.residual = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class BottleneckNet(nn.Module):
    """Inverted residuals in two stages, the second of three units; ends in mean and Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        units = [Bottleneck(16, 32, 2), Bottleneck(32, 32, 1), Bottleneck(32, 48, 2)]
        self.units = nn.Sequential(*units, Bottleneck(48, 48, 1), Bottleneck(48, 48, 1))
        self.head = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.units(self.stem(x)).mean((2, 3)))


class Basic(nn.Module):
    """Residual block of two 3x3 convolutions with an activation behind the addition, asymmetric padding in front."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.pads = (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1)
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 0, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.first_norm(self.first(functional.pad(x, self.pads))))
        return functional.relu(self.second(y) + self.shortcut(x))


class BasicNet(nn.Module):
    """Basic residual blocks; some convolutions have no BN; ends in adaptive pooling, flatten, dropout, Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2))
        self.blocks = nn.Sequential(Basic(32, 32, 1), Basic(32, 32, 1), Basic(32, 64, 2), Basic(64, 64, 1))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


def made(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    """A network of `kind` in eval mode whose BN layers hold the statistics of standard normal images."""
    torch.manual_seed(seed)
    net = kind()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            module.momentum = None
    net.train()
    with torch.no_grad():
        net(images(32))
    return net.eval()


def images(count: int, seed: int = 1) -> Tensor:
    """Smooth random images float32 [count, 3, 32, 32]: neighbouring pixels agree, as in photographs."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 8, 8, generator=generator)
    return functional.interpolate(coarse, size=(32, 32), mode="bilinear", align_corners=False)

"""Small networks of the kinds that the builder takes, with true-to-life BN statistics and seeded weights."""

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


def conv(inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, BN, ReLU."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


class Small(nn.Module):
    """Stem of `width` channels, body (of a subclass), mean of `features` channels, Linear."""

    def __init__(self, features: int, width: int = 32) -> None:
        super().__init__()
        self.stem, self.head = conv(3, width, stride=2), nn.Linear(features, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))

    def body(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class DenseNet(Small):
    """Each layer adds 16 features to all before it; activations come before convolutions."""

    def __init__(self) -> None:
        super().__init__(80)
        widths = (32, 48, 64)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(w), nn.ReLU(), *conv(w, 64, 1), nn.Conv2d(64, 16, 3, 1, 1)) for w in widths
        )

    def body(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


class FireNet(Small):
    """Squeeze, then two kinds of convolutions side by side, concatenated."""

    def __init__(self) -> None:
        super().__init__(64)
        self.squeeze = nn.ModuleList(conv(w, 32, 1) for w in (32, 64))
        self.small, self.large = (nn.ModuleList(conv(32, 32, k) for _ in range(2)) for k in (1, 3))

    def body(self, x: Tensor) -> Tensor:
        for squeeze, small, large in zip(self.squeeze, self.small, self.large, strict=True):
            x = squeeze(x)
            x = torch.cat((small(x), large(x)), dim=1)
        return x


class GroupNet(Small):
    """Residual blocks with grouped convolutions, 8 groups in one and 2 in the other, and squeeze-excite."""

    def __init__(self) -> None:
        super().__init__(32)
        inner = [nn.Sequential(conv(32, 64, 1), conv(64, 64, groups=groups)) for groups in (8, 2)]
        self.inner = nn.ModuleList(inner)
        self.excite = nn.ModuleList(nn.Sequential(nn.Conv2d(64, 32, 1), nn.ReLU(), nn.Conv2d(32, 64, 1)) for _ in inner)
        self.outer = nn.ModuleList(nn.Sequential(nn.Conv2d(64, 32, 1), nn.BatchNorm2d(32)) for _ in inner)

    def body(self, x: Tensor) -> Tensor:
        for inner, excite, outer in zip(self.inner, self.excite, self.outer, strict=True):
            y = inner(x)
            y = y * torch.sigmoid(excite(functional.adaptive_avg_pool2d(y, 1)))
            x = functional.relu(x + outer(y))
        return x


class MixNet(Small):
    """Inverted residual whose inner channels are split over two kernel sizes, and halved by a slice at the end."""

    def __init__(self) -> None:
        super().__init__(32)
        self.expand, self.project = conv(32, 96, 1), nn.Sequential(nn.Conv2d(64, 32, 1), nn.BatchNorm2d(32))
        self.small, self.large = conv(32, 32, 3, groups=32), conv(64, 64, 5, groups=64)

    def body(self, x: Tensor) -> Tensor:
        a, b = torch.split(self.expand(x), [32, 64], dim=1)
        y = torch.cat([self.small(a), self.large(b)], 1)
        return x + self.project(y[:, 32:])


class ShuffleNet(Small):
    """Half of the channels passes by; then both halves are shuffled."""

    def __init__(self) -> None:
        super().__init__(64, width=64)
        self.branches = nn.ModuleList(
            nn.Sequential(conv(32, 32, 1), nn.Conv2d(32, 32, 3, 1, 1, groups=32), nn.BatchNorm2d(32), conv(32, 32, 1))
            for _ in range(3)
        )

    def body(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            kept, changed = x.chunk(2, dim=1)
            x = torch.cat((kept, branch(changed)), 1)
            n, c, h, w = x.size()
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        return x


class NextNet(Small):
    """Depthwise 7x7, LayerNorm, a GELU perceptron on the last axis, a scale for each channel; no BN in the blocks."""

    def __init__(self) -> None:
        super().__init__(32)
        self.depthwise = nn.ModuleList(nn.Conv2d(32, 32, 7, 1, 3, groups=32) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(3))
        self.wide, self.back = (nn.ModuleList(nn.Linear(*s) for _ in range(3)) for s in ((32, 128), (128, 32)))
        self.scales = nn.ParameterList(nn.Parameter(torch.full((32,), 0.5)) for _ in range(3))

    def body(self, x: Tensor) -> Tensor:
        blocks = zip(self.depthwise, self.norms, self.wide, self.back, self.scales, strict=True)
        for depthwise, norm, wide, back, scale in blocks:
            y = norm(depthwise(x).permute(0, 2, 3, 1))
            x = x + (scale * back(functional.gelu(wide(y)))).permute(0, 3, 1, 2)
        return x


class PlainNet(nn.Module):
    """Convolutions with biases and no BN, as after folding; ends in a convolution for the classes."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((3, 32), (32, 64), (64, 64), (64, 64), (64, 64))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 1, 1) for a, b in sizes)
        self.head = nn.Conv2d(64, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.convs):
            x = functional.relu(layer(x))
            x = functional.max_pool2d(x, 2) if index == 0 else x
        return self.head(functional.adaptive_avg_pool2d(x, 1)).flatten(1)


class WideHeadNet(nn.Module):
    """Inverted residuals, and a head that widens before the pooling, as that of MobileNet."""

    def __init__(self) -> None:
        super().__init__()
        self.units = nn.Sequential(conv(3, 16, stride=2), Bottleneck(16, 24, 2), Bottleneck(24, 24, 1), conv(24, 96, 1))
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(96, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.units(x).mean((2, 3)))


class DenseHeadNet(nn.Module):
    """Plain convolutions, and a head of linear layers on all pixels, as that of VGG."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 16, stride=4), conv(16, 32, stride=2), conv(32, 16))
        hidden = (nn.Linear(16 * 16, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 48), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(48, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class TappedNet(nn.Module):
    """Two inputs; logits and two levels of features that are read on the way; returns nested containers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side = conv(3, 32, stride=2), conv(1, 32, stride=2)
        self.first, self.second = nn.Sequential(Basic(32, 32, 1), Basic(32, 32, 1)), Basic(32, 64, 2)
        self.lateral, self.head = nn.Conv2d(32, 64, 1), nn.Linear(64, 5)

    def forward(self, image: Tensor, depth: Tensor, *, scale: float = 2.0) -> dict[str, object]:
        low = self.first(self.stem(image) + self.side(depth))
        high = self.second(low)
        fused = self.lateral(low) + functional.interpolate(high, scale_factor=scale, mode="nearest")
        return {"logits": self.head(high.mean((2, 3))), "levels": [fused, (high,)]}


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

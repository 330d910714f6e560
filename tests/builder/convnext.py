"""A small network of ConvNeXt's kind: what is in it of layer norms, of [N, H, W, C] and of scaled shortcuts."""

import torch
from torch import Tensor, nn


class ChannelsFirstNorm(nn.Module):
    """LayerNorm over the channels of [N, C, H, W], written out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(channels)), nn.Parameter(torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(1, keepdim=True)
        x = x / torch.sqrt(x.pow(2).mean(1, keepdim=True) + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Block(nn.Module):
    """Depthwise 7x7, LayerNorm and two Linear layers on [N, H, W, C], layer scale, shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand, self.act = nn.Linear(channels, 4 * channels), nn.GELU()
        self.project = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.project(self.act(self.expand(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    """Patches of 4 px, two stages of two blocks, mean, LayerNorm, Linear; from [N, 3, 4 k, 4 k] to [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 4, 4), ChannelsFirstNorm(16))
        self.first = nn.Sequential(Block(16), Block(16))
        self.down = nn.Sequential(ChannelsFirstNorm(16), nn.Conv2d(16, 32, 2, 2))
        self.second = nn.Sequential(Block(32), Block(32))
        self.norm, self.head = nn.LayerNorm(32, eps=1e-6), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.down(self.first(self.stem(x))))
        return self.head(self.norm(x.mean([-2, -1])))

"""The lowering, operator by operator: exported, let through by the runtime's check, and run on other batches."""

import warnings

import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.builder.convnext import Block, ChannelsFirstNorm
from tests.builder.lowered import Net, exported, relative_error, traced_by_fx, with_shapes

pytestmark = [
    pytest.mark.builder,
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
]

SIDE = 8


def norm(channels):
    made = nn.BatchNorm2d(channels)
    for values, low in ((made.weight, 0.5), (made.running_var, 0.5), (made.bias, -0.5), (made.running_mean, -0.5)):
        nn.init.uniform_(values, low, low + 1)
    return made


def shuffled(x, groups):
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(batch, -1, height, width)


def conv(*args, **kwargs):
    return nn.Conv2d(*args, **kwargs)


CASES = {
    # convolutions, their norms and their padding
    "conv and norm": lambda: Net(lambda m, x: m.norm(m.conv(x)), conv=conv(3, 6, 3, bias=False), norm=norm(6)),
    "conv alone": lambda: Net(lambda m, x: m.conv(x), conv=conv(3, 6, 3, 2, 1)),
    "grouped": lambda: Net(lambda m, x: m.b(m.a(x)), a=conv(3, 8, 1), b=conv(8, 12, 3, groups=4, dilation=2)),
    "same": lambda: Net(lambda m, x: m.conv(x), conv=conv(3, 6, (4, 3), padding="same")),
    "valid": lambda: Net(lambda m, x: m.conv(x), conv=conv(3, 6, 3, padding="valid")),
    "asymmetric zeros": lambda: Net(lambda m, x: m.conv(F.pad(x, (0, 1, 2, 0))), conv=conv(3, 6, 3, 2)),
    "zeros twice": lambda: Net(lambda m, x: m.conv(m.pad(F.pad(x, (1, 0)))), pad=nn.ZeroPad2d(1), conv=conv(3, 6, 3)),
    "zeros read by a sum": lambda: Net(lambda m, x: F.pad(x, (1, 1, 1, 1)) + m.conv(x), conv=conv(3, 3, 1, padding=1)),
    "zeros at the end": lambda: Net(lambda m, x: F.pad(x, (1, 2, 0, 3))),
    "zero channels": lambda: Net(lambda m, x: F.pad(F.pad(x, (1, 0, 0, 0)), (0, 0, 0, 0, 1, 2))),
    "functional conv": lambda: Net(
        lambda m, x: F.conv2d(x, m.w * m.s.view(-1, 1, 1, 1), m.b, 2, 1),
        w=nn.Parameter(torch.randn(6, 3, 3, 3)),
        s=nn.Parameter(torch.rand(6)),
        b=nn.Parameter(torch.rand(6)),
    ),
    "norm before": lambda: Net(lambda m, x: m.conv(F.relu(m.norm(x))), conv=conv(3, 6, 3), norm=norm(3)),
    "norm that two read": lambda: Net(lambda m, x: m.n(m.c(x)) + m.c(x), c=conv(3, 6, 3), n=norm(6)),
    "functional norm": lambda: Net(
        lambda m, x: F.batch_norm(x, m.n.running_mean, m.n.running_var, m.n.weight, m.n.bias), n=norm(3)
    ),
    "norm of features": lambda: Net(lambda m, x: m.norm(x.mean((2, 3))), norm=nn.BatchNorm1d(3)),
    "layer norm": lambda: Net(lambda m, x: m.norm(x), norm=nn.LayerNorm((SIDE, SIDE))),
    "layer norm bare": lambda: Net(lambda m, x: F.layer_norm(x.permute(0, 2, 3, 1), (3,))),
    "group norm": lambda: Net(lambda m, x: m.norm(m.conv(x)), conv=conv(3, 6, 1), norm=nn.GroupNorm(2, 6)),
    "instance norm": lambda: Net(lambda m, x: m.norm(x), norm=nn.InstanceNorm2d(3, affine=True)),
    "local response": lambda: Net(lambda m, x: m.norm(m.c(x)), c=conv(3, 9, 1), norm=nn.LocalResponseNorm(5, 0.1)),
    # activations
    "relu6": lambda: Net(lambda m, x: m.act(3 * x) + F.relu6(x), act=nn.ReLU6()),
    "leaky": lambda: Net(lambda m, x: m.act(x) + F.leaky_relu(x, 0.3), act=nn.LeakyReLU(0.1)),
    "prelu": lambda: Net(lambda m, x: m.a(x) + m.b(x), a=nn.PReLU(3, init=0.2), b=nn.PReLU()),
    "elu": lambda: Net(lambda m, x: m.a(x) + F.selu(x) + m.c(x), a=nn.ELU(0.5), c=nn.CELU(2.0)),
    "tanh": lambda: Net(lambda m, x: torch.tanh(x) + x.tanh() + m.act(x), act=nn.Tanh()),
    "gelu": lambda: Net(lambda m, x: m.act(x) + F.gelu(x), act=nn.GELU()),
    "gelu by tanh": lambda: Net(lambda m, x: m.act(x), act=nn.GELU(approximate="tanh")),
    "hard": lambda: Net(lambda m, x: F.hardswish(x) + F.hardsigmoid(x) + F.hardtanh(x) + x.clamp(min=0.1)),
    "hard by hand": lambda: Net(lambda m, x: x * F.relu6(x + 3.0, inplace=True) / 6.0 + torch.clamp(x, -1, 2)),
    "smooth": lambda: Net(lambda m, x: F.silu(x) + F.mish(x) + F.softplus(x) + F.softplus(x, beta=2) + x.sigmoid()),
    "softmax": lambda: Net(lambda m, x: m.act(x) + F.softmax(x, -1) + x.softmax(2), act=nn.Softmax(dim=1)),
    # arithmetic
    "numbers": lambda: Net(lambda m, x: (1 - x) * 2 + 3 / (x * x + 1) - (-x) / 4 + torch.add(x, x, alpha=2)),
    "layer scale": lambda: Net(lambda m, x: x + x * m.g - m.g, g=nn.Parameter(torch.rand(1, 3, 1, 1))),
    "gating": lambda: Net(
        lambda m, x: x * torch.sigmoid(m.b(F.relu(m.a(m.pool(x))))),
        pool=nn.AdaptiveAvgPool2d(1),
        a=conv(3, 2, 1),
        b=conv(2, 3, 1),
    ),
    "sum of a list": lambda: Net(lambda m, x: sum([x, x * 2, F.relu(x)])),
    "reductions": lambda: Net(
        lambda m, x: (
            x.sum(1, keepdim=True)
            + x.mean((1, 3), keepdim=True)
            + x.amax(2, keepdim=True)
            + x.max(dim=1)[0].unsqueeze(1)
        )
    ),
    "root": lambda: Net(lambda m, x: torch.sqrt(x.pow(2) + 1) + (x * x + 1) ** 0.5 + torch.rsqrt(x * x + 1)),
    "head": lambda: Net(lambda m, x: m.fc(m.drop(torch.flatten(x, 1))), fc=nn.Linear(192, 5), drop=nn.Dropout()),
    "linear on pixels": lambda: Net(lambda m, x: m.fc(x.permute(0, 2, 3, 1)), fc=nn.Linear(3, 5)),
    "matmul": lambda: Net(
        lambda m, x: x.flatten(2) @ m.w + m.b, w=nn.Parameter(torch.rand(64, 4)), b=nn.Parameter(torch.rand(4))
    ),
    # pooling
    "pools": lambda: Net(lambda m, x: m.a(x) + m.b(x), a=nn.MaxPool2d(3, 2, 1), b=nn.AvgPool2d(3, 2, 1)),
    "max rounded up": lambda: Net(lambda m, x: m.pool(x), pool=nn.MaxPool2d(3, 2, ceil_mode=True)),
    "mean rounded up": lambda: Net(lambda m, x: m.pool(x), pool=nn.AvgPool2d(3, 2, ceil_mode=True)),
    "mean without padding": lambda: Net(lambda m, x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)),
    "mean of zeros": lambda: Net(lambda m, x: F.avg_pool2d(F.pad(x, (1, 0, 1, 0)), 3, 2)),
    "mean of zeros that count and others": lambda: Net(
        lambda m, x: F.avg_pool2d(F.pad(x, (1, 0, 1, 0)), 3, 2, 1, count_include_pad=False)
    ),
    "mean of zeros rounded up": lambda: Net(lambda m, x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2, ceil_mode=True)),
    "max of zeros": lambda: Net(lambda m, x: F.max_pool2d(F.pad(x - 9, (1, 0, 1, 0)), 3, 2)),
    "global": lambda: Net(lambda m, x: torch.cat([x.mean((2, 3)), x.mean([-1, -2], keepdim=True).flatten(1)], 1)),
    "adaptive": lambda: Net(lambda m, x: F.adaptive_avg_pool2d(x, (2, 4)) + F.adaptive_max_pool2d(x, (2, 4))),
    "adaptive to one": lambda: Net(lambda m, x: F.adaptive_avg_pool2d(x, 1) + F.adaptive_max_pool2d(x, 1)),
    # layout
    "shuffle": lambda: Net(lambda m, x: shuffled(m.conv(x), 3), conv=conv(3, 12, 1)),
    "shuffle modules": lambda: Net(
        lambda m, x: m.b(m.a(m.c(x))), c=conv(3, 8, 1), a=nn.ChannelShuffle(2), b=nn.PixelShuffle(2)
    ),
    "halves": lambda: Net(lambda m, x: torch.cat([F.relu(x.chunk(2, 2)[1]), torch.chunk(x, 2, dim=2)[0].exp()], 1)),
    "split": lambda: Net(lambda m, x: torch.cat(torch.split(m.c(x), [2, 3, 1], dim=1)[::-1], 1), c=conv(3, 6, 1)),
    "split by size": lambda: Net(lambda m, x: m.c(x).split(4, 1)[1], c=conv(3, 6, 1)),
    "slices": lambda: Net(
        lambda m, x: torch.cat((x[..., ::2, ::2], x[:, :, 1::2, -4:], x[:, 1].unsqueeze(1)[..., :4, :4]), dim=1)
    ),
    "pieces": lambda: Net(
        lambda m, x: torch.stack(x.unbind(1)[:2], 1) + torch.narrow(x, 1, 1, 2) + x.select(1, 0)[:, None]
    ),
    "expand": lambda: Net(
        lambda m, x: x.mean((2, 3), keepdim=True).expand_as(x) + x.mean(1, True).expand(-1, 3, -1, -1)
    ),
    "repeat": lambda: Net(lambda m, x: x[:, :1].repeat(1, 3, 2, 1)),
    "squeeze": lambda: Net(
        lambda m, x: F.adaptive_avg_pool2d(x, 1).squeeze(3).squeeze(2) + x.view(x.shape[0], 3, -1)[:, :, 0]
    ),
    # resizing
    "nearest": lambda: Net(lambda m, x: m.up(x), up=nn.Upsample(scale_factor=2, mode="nearest")),
    "bilinear": lambda: Net(lambda m, x: F.interpolate(x, size=(12, 20), mode="bilinear", align_corners=False)),
    "bilinear corners": lambda: Net(
        lambda m, x: F.interpolate(x, scale_factor=1.5, mode="bilinear", align_corners=True)
    ),
    "smaller": lambda: Net(
        lambda m, x: F.interpolate(F.interpolate(x, size=(3, 5), mode="bilinear"), x.shape[2:], mode="bilinear")
    ),
    "nearest down": lambda: Net(lambda m, x: F.interpolate(x, scale_factor=0.5)),
    # together
    "convnext block": lambda: Net(
        lambda m, x: m.b(m.n(m.c(x))), c=conv(3, 6, 4, 4), n=ChannelsFirstNorm(6), b=Block(6)
    ),
}

COMPOSED = ("local response",)
"""What torch.export takes apart into operators of five dimensions."""


def example(batch, seed=0):
    return torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def made(case):
    torch.manual_seed(1)
    return CASES[case]().eval()


@pytest.mark.parametrize("case", CASES)
def test_an_operator_equals_torch_for_every_batch(case, tmp_path):
    net, x = made(case), example(2)
    bundle = exported(tmp_path / "b", traced_by_fx(net, x), x, net(x))
    for batch in (1, 2, 5):
        assert relative_error(bundle, net, example(batch, seed=batch)) <= 1e-5


@pytest.mark.parametrize("case", [case for case in CASES if case not in COMPOSED])
def test_the_same_from_a_graph_of_aten_operators(case, tmp_path):
    net, x = made(case), example(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's own
        traced = torch.export.export(net, (x,)).module()
    bundle = exported(tmp_path / "b", with_shapes(traced, x), x, net(x))
    assert relative_error(bundle, net, example(3, seed=3)) <= 1e-5

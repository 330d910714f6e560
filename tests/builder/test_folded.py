"""The form in which alternatives train: the same function, the same alternatives, no frozen BatchNorm left."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from builder.elastify import elastify, with_folded_originals
from edge_runtime.seeds import covering_vectors
from tests.builder.nets import BasicNet, BottleneckNet, DenseNet, FireNet, MixNet, NextNet, PlainNet, images, made

pytestmark = pytest.mark.builder


@pytest.mark.parametrize("kind", [BottleneckNet, BasicNet, DenseNet, FireNet, MixNet, NextNet, PlainNet])
def test_every_subnet_is_the_same_function(kind):
    supernet, x = elastify(made(kind), images(16)), images(4, seed=3)
    quick = with_folded_originals(supernet)
    with torch.no_grad():
        for gates in [supernet.space.default, *covering_vectors(supernet.space)]:
            wanted, found = supernet.features(x, gates), quick.features(x, gates)
            for one, other in zip((*wanted.outputs, *wanted.exits), (*found.outputs, *found.exits), strict=True):
                assert (one is None) == (other is None)
                assert one is None or (one - other).abs().max() <= 1e-5 * one.abs().max().clamp_min(1)


def test_alternatives_are_shared_and_the_original_is_left_alone():
    net, x = made(BottleneckNet), images(16)
    supernet = elastify(net, x)
    before = {name: value.clone() for name, value in supernet.fixed.state_dict().items()}
    quick = with_folded_originals(supernet)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in quick.fixed.modules())
    assert not any(parameter.requires_grad for parameter in quick.fixed.parameters())
    assert not any(module.training for module in quick.bodies.modules())
    supernet.train()
    with_folded_originals(supernet)
    assert all(module.training for module in supernet.bodies.modules())
    own, shared = ({id(p) for p in bodies.parameters()} for bodies in (supernet.bodies, quick.bodies))
    assert own == shared
    quick.features(x, covering_vectors(supernet.space)[0]).outputs[0].sum().backward()
    assert any(parameter.grad is not None for parameter in supernet.bodies.parameters())
    assert all(torch.equal(value, before[name]) for name, value in supernet.fixed.state_dict().items())


class SharedConv(nn.Module):
    """Residual blocks whose one convolution runs twice, before two BatchNorms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.narrow = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 48, 1), nn.Conv2d(48, 16, 1)
        self.first, self.second, self.last = nn.BatchNorm2d(48), nn.BatchNorm2d(48), nn.BatchNorm2d(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = x + self.last(self.narrow(self.first(self.mix(x)).relu()))
        return x + self.narrow(self.second(self.mix(x)).relu())


def test_a_convolution_that_runs_twice_keeps_its_norms():
    net = SharedConv().eval()
    for norm in (net.first, net.second, net.last):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    x = images(8)
    supernet = elastify(net, x)
    with torch.no_grad():
        found = with_folded_originals(supernet)(x, supernet.space.default)
        assert (found - net(x)).abs().max() < 1e-4

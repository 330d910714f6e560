import copy

import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from builder.elastify import elastify
from builder.elastify.trace import trace
from edge_runtime.errors import UsageError
from tests.builder.nets import images


class Inplace(nn.Module):
    """A net whose forward writes into a value and does not use what that returns."""

    def __init__(self, write):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self._write = write

    def forward(self, x):
        y = self.first(x)
        self._write(self, y)
        return self.second(y).mean((2, 3))


WRITES = {
    "module": lambda net, y: net.act(y),
    "function": lambda net, y: functional.relu(y, inplace=True),
    "method": lambda net, y: y.relu_(),
    "chain": lambda net, y: y.sub_(0.3).clamp_(min=0),
}


@pytest.mark.parametrize("write", WRITES)
def test_what_is_written_in_place_counts_although_nobody_reads_it(write):
    torch.manual_seed(0)
    net, x = Inplace(WRITES[write]).eval(), torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(trace(net, x[:2])(x), net(x), rtol=0, atol=0)


class ByData(nn.Module):
    """Divides by a number of its input, which a traced graph would keep as it was of the example."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        return functional.relu(y / y.abs().max().item()).mean((2, 3))


def test_a_graph_that_computes_something_else_is_refused():
    with pytest.raises(UsageError, match="cannot be traced"):
        trace(ByData().eval(), images(2))


@pytest.mark.parametrize("reparametrize", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_computed_weights_are_refused_until_they_are_plain(reparametrize):
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 8, 3, padding=1)]
    net = nn.Sequential(*(layer for conv in convs for layer in (reparametrize(conv), nn.ReLU()))).eval()
    x = images(4)
    with torch.no_grad():
        wanted = net(x)
    with pytest.raises(UsageError, match="parametrized weights") as caught:
        elastify(net, x)
    assert "remove_parametrizations" in str(caught.value)
    for conv in convs:
        nn.utils.parametrize.remove_parametrizations(conv, "weight")
    supernet = elastify(net, x)
    with torch.no_grad():
        torch.testing.assert_close(supernet(x, supernet.space.default), wanted)


def test_a_network_that_cannot_be_copied_is_refused_with_a_hint():
    with pytest.warns(FutureWarning):
        net = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU())
    net(images(2))
    try:
        copy.deepcopy(net)
    except RuntimeError:
        with pytest.raises(UsageError, match="cannot be copied") as caught:
            trace(net, images(2))
        assert "remove_weight_norm" in str(caught.value)
    else:
        pytest.skip("this torch copies such modules")

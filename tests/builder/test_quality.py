"""What `nnf-build train` says of a supernet, against all of its subnets."""

import pytest

torch = pytest.importorskip("torch")

from builder.distill import measure_prior
from builder.elastify import ElasticOptions, elastify
from builder.project.quality import SHARES, agreement, agreement_line
from edge_runtime.additive import AdditiveCost
from edge_runtime.errors import UsageError
from tests.builder.nets import BottleneckNet, images, made

pytestmark = pytest.mark.builder


@pytest.fixture(scope="module")
def supernet():
    """One whose alternatives are far enough from the originals that subnets answer differently."""
    found = elastify(made(BottleneckNet), images(32))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in found.bodies.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter) * parameter.abs().mean())
    return found


@pytest.fixture(scope="module")
def prior(supernet):
    return measure_prior(supernet, images(64, seed=8))


def expected(supernet, prior, cost):
    """By trying every subnet."""
    x, damage = images(96, seed=9), AdditiveCost.damage(supernet.space, prior)
    subnets = list(supernet.space.enumerate())
    with torch.no_grad():
        own = supernet(x, supernet.space.default).argmax(1)
        found = {}
        for share in SHARES:
            within = [gates for gates in subnets if cost(gates) <= share * cost(supernet.space.default)]
            if within:
                found[share] = (supernet(x, min(within, key=damage)).argmax(1) == own).float().mean().item()
    return found


def test_the_best_subnet_of_each_share_is_compared_with_the_network(supernet, prior):
    wanted = expected(supernet, prior, supernet.macs)
    assert len(set(wanted.values())) == len(wanted) > 1, "subnets that agree alike would hide a wrong one"
    assert agreement(supernet, prior, images(96, seed=9)) == pytest.approx(wanted)


def test_shares_are_of_a_devices_latency_where_it_is_known(supernet, prior):
    """On this device nothing but the first unit costs time."""
    groups = supernet.space.groups
    rows = [[1.0] + [0.5] * (groups[0].size - 1)] + [[0.0] * group.size for group in groups[1:]]
    latency = AdditiveCost(supernet.space, 0.0, tuple(map(tuple, rows)))
    found = agreement(supernet, prior, images(96, seed=9), latency=latency)
    assert found == pytest.approx(expected(supernet, prior, latency))
    assert set(found) == {0.8, 0.6}


def test_a_table_of_another_supernet_is_refused(supernet, prior):
    space = elastify(made(BottleneckNet), images(32), ElasticOptions(widths=(0.5,), window=1)).space
    rows = tuple((1.0,) * group.size for group in space.groups)
    with pytest.raises(UsageError, match="another supernet"):
        agreement(supernet, prior, images(8), latency=AdditiveCost(space, 1.0, rows))


def test_the_line_says_parts_shares_and_unit():
    (line,) = agreement_line({0.8: 0.914, 0.6: 255 / 256}, 256, "predicted latency")
    assert "256 held-out images" in line
    assert line.endswith("91.4% at 80%, 99.6% at 60% of its predicted latency")
    assert agreement_line({}, 256, "predicted latency") == []

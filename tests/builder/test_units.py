import json
import math

import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.utils._pytree import tree_leaves

from builder.distill import measure_prior
from builder.elastify import ElasticOptions, NothingElasticError, elastify, find_segments
from builder.elastify.channels import channel_plan, inner_widths
from builder.elastify.cost import multiply_accumulates
from builder.elastify.narrow import channel_importance, kept_units, narrow
from builder.elastify.norms import with_norms
from builder.elastify.trace import trace
from builder.export import pack
from edge_runtime.backends import open_session
from edge_runtime.errors import UsageError
from tests.builder import nets
from tests.builder.nets import images, made
from tests.builder.test_export import INFO

pytestmark = pytest.mark.builder

KINDS = [
    nets.DenseNet,
    nets.FireNet,
    nets.GroupNet,
    nets.MixNet,
    nets.ShuffleNet,
    nets.NextNet,
    nets.PlainNet,
    nets.WideHeadNet,
    nets.DenseHeadNet,
]
HEAD = "head with a hidden layer"


def units_of(net):
    return [segment for segment in find_segments(trace(net, images(4))) if segment.elastic]


@pytest.mark.parametrize(
    ("kind", "reasons", "skips"),
    [
        (nets.DenseNet, ["linear bottleneck"] * 3, 0),
        (nets.FireNet, ["branches that are concatenated", HEAD], 1),
        (nets.GroupNet, ["residual region"] * 2, 2),
        (nets.MixNet, ["residual region"], 1),
        (nets.ShuffleNet, ["depthwise separable run"] * 3, 3),
        (nets.NextNet, ["residual region"] * 3, 3),
        (nets.PlainNet, ["plain run of convolutions", HEAD], 0),
        (nets.WideHeadNet, ["linear bottleneck", "residual region", HEAD], 1),
        (nets.DenseHeadNet, ["plain run of convolutions", HEAD], 0),
    ],
)
def test_every_kind_of_block_becomes_a_unit_and_the_default_path_is_bit_equal(kind, reasons, skips):
    net, x = made(kind), images(8)
    supernet = elastify(net, x)
    assert [supernet.segments[unit.segment].reason for unit in supernet.units] == reasons
    assert sum("skip" in group.labels for group in supernet.space.groups) == skips
    assert all("narrow50" in group.labels for group in supernet.space.groups)
    with torch.no_grad():
        assert torch.equal(supernet(x, supernet.space.default), net(x))


class Ending(nets.WideHeadNet):
    """A head with a hidden layer, and what a test puts behind it."""

    def __init__(self, end):
        super().__init__()
        self.end, self.other = end, nn.Linear(96, 3)

    def forward(self, x):
        return self.end(self, self.units(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("end", "heads"),
    [
        (lambda net, pooled: net.head(pooled).softmax(1), 1),
        (lambda net, pooled: {"scores": net.head(pooled).sigmoid()}, 1),
        (lambda net, pooled: (net.head(pooled), net.other(pooled)), 0),
        (lambda net, pooled: (net.head(pooled), pooled), 0),
    ],
)
def test_a_head_is_a_unit_where_nothing_else_reads_its_hidden_layer(end, heads, tmp_path):
    net, x = made(lambda: Ending(end)), images(8)
    supernet = elastify(net, x)
    reasons = [supernet.segments[unit.segment].reason for unit in supernet.units]
    assert reasons == ["linear bottleneck", "residual region"] + [HEAD] * heads
    gates = supernet.space.gates([1] * len(supernet.units))
    session = open_session(pack(supernet, measure_prior(supernet, x), INFO, tmp_path / "net.nnf"))
    with torch.no_grad():
        for chosen in (supernet.space.default, gates):
            found = session.run({session.inputs[0].name: x.numpy()}, chosen)
            wanted = tree_leaves(supernet(x, chosen))
            for one, other in zip(found.values(), wanted, strict=True):
                assert torch.allclose(torch.from_numpy(one), other, atol=1e-4)


def silence(unit, ratio):
    """Make nobody read as many blocks of each inner width as a copy of width `ratio` leaves out."""
    plan = channel_plan(unit)
    kept = {}
    for index, width in enumerate(plan.widths):
        ranged, each = width.units // width.balance, kept_units(width, ratio) // width.balance
        order = torch.randperm(ranged, generator=torch.Generator().manual_seed(index))[:each].sort().values
        kept[index] = (order + torch.arange(width.balance)[:, None] * ranged).flatten()
    for width in plan.widths:
        for name in width.consumers:
            layer, heard = unit.get_submodule(name), plan.kept(plan.layers[name][0], kept)
            inputs = sum(part.channels for part in plan.layers[name][0])
            silent = torch.ones(inputs).index_fill(0, heard, 0).bool()
            groups = getattr(layer, "groups", 1)
            blocks = layer.weight.data.view(groups, layer.weight.shape[0] // groups, layer.weight.shape[1], -1)
            blocks.mul_((~silent).view(groups, 1, -1, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_without_the_channels_that_nobody_reads_computes_the_same(kind):
    for segment in units_of(made(kind)):
        unit, x = segment.module, torch.rand(4, *segment.in_shape, generator=torch.Generator().manual_seed(0))
        silence(unit, 0.5)
        copied = narrow(unit, 0.5, channel_importance(unit, [x]))
        assert multiply_accumulates(copied) < 0.8 * multiply_accumulates(unit)
        with torch.no_grad():
            assert torch.allclose(copied(x), unit(x), atol=1e-4)


def test_grouped_convolutions_are_narrowed_by_groups_or_evenly():
    many, few = (segment.module for segment in units_of(made(nets.GroupNet)))
    assert (inner_widths(many)[0].units, inner_widths(many)[0].balance) == (8, 1)
    assert [width.balance for width in inner_widths(few)] == [2, 2, 1]
    for unit, groups in ((many, 4), (few, 2)):
        copied = narrow(unit, 0.5, channel_importance(unit, [torch.rand(2, 32, 16, 16)]))
        grouped = [m for m in copied.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
        assert [(conv.groups, conv.out_channels) for conv in grouped] == [(groups, 32)]


def test_linear_bottlenecks_are_never_narrowed_themselves():
    class Factored(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up = nn.Conv2d(32, 16, 1), nn.Conv2d(16, 32, 3, 1, 1)

        def forward(self, x):
            return x + self.up(self.down(x))

    assert inner_widths(trace(Factored(), torch.rand(1, 32, 8, 8))) == []


def test_values_that_others_read_are_no_windows_and_stay_right():
    net = made_tapped()
    inputs = images(8), images(8, seed=2)[:, :1]
    supernet = elastify(net, inputs)
    wanted = net(*inputs)
    with torch.no_grad():
        found = supernet(inputs, supernet.space.default)
    assert list(found) == ["logits", "levels"]
    assert isinstance(found["levels"], list)
    assert isinstance(found["levels"][1], tuple)
    pairs = (found["logits"], wanted["logits"]), (found["levels"][0], wanted["levels"][0])
    for one, other in (*pairs, (found["levels"][1][0], wanted["levels"][1][0])):
        assert torch.equal(one, other)
    features = supernet.features(inputs, supernet.space.default)
    assert [tuple(value.shape[1:]) for value in features.outputs] == [(5,), (64, 16, 16), (64, 8, 8)]
    assert [group.window for group in supernet.space.groups] == [2, 1, 1]  # the third unit's input is tapped


def made_tapped():
    torch.manual_seed(0)
    return nets.TappedNet().eval()


def test_a_run_is_resumed_where_values_by_pass_the_unit():
    supernet = elastify(made_tapped(), (images(8), images(8, seed=2)[:, :1]))
    inputs, space = (images(4, seed=3), images(4, seed=4)[:, :1]), supernet.space
    with torch.no_grad():
        known = supernet.features(inputs, space.default)
        for index, group in enumerate(space.groups):
            gates = space.default.replace(index, group.size - 1)
            whole, rest = supernet.features(inputs, gates), supernet.resume(known, index, gates)
            assert all(torch.equal(a, b) for a, b in zip(whole.outputs, rest.outputs, strict=True))


def test_too_few_inputs_are_refused():
    supernet = elastify(made_tapped(), (images(8), images(8, seed=2)[:, :1]))
    with pytest.raises(UsageError, match="image, depth"):
        supernet(images(2), supernet.space.default)


class ByShape(nn.Module):
    """Decides by the shape of its input, which torch.fx cannot follow, and writes into its values."""

    def __init__(self):
        super().__init__()
        self.net = nets.BottleneckNet()

    def forward(self, x):
        if x.shape[2] > 16:
            x = nn.functional.avg_pool2d(x, 2)
        y = self.net.units(self.net.stem(x))
        return self.net.head(y.relu_().mean((2, 3)) + y.amax((2, 3)))


def test_what_torch_fx_cannot_follow_is_exported():
    net, x = made(ByShape), images(8)
    supernet = elastify(net, x)
    assert len(supernet.units) == 5
    with torch.no_grad():
        for batch in (x, x[:3]):
            assert torch.equal(supernet(batch, supernet.space.default), net(batch))


class TappedByShape(nets.TappedNet):
    """As its parent, with a step that torch.fx cannot follow."""

    def forward(self, image, depth):
        if image.shape[2] > 16:
            depth = depth.clamp(-2, 2)
        return super().forward(image, depth)


def test_what_is_exported_keeps_its_inputs_and_containers():
    torch.manual_seed(0)
    net, inputs = TappedByShape().eval(), (images(8), images(8, seed=2)[:, :1])
    supernet = elastify(net, inputs)
    found, wanted = supernet(inputs, supernet.space.default), net(*inputs)
    assert torch.equal(found["logits"], wanted["logits"])
    assert torch.equal(found["levels"][1][0], wanted["levels"][1][0])


def test_the_batch_stays_free_where_code_reads_sizes():
    net = made(nets.ShuffleNet)
    supernet = elastify(net, images(8))
    with torch.no_grad():
        for count in (1, 5):
            x = images(count, seed=7)
            assert torch.equal(supernet(x, supernet.space.default), net(x))
    assert not any("size" in str(node.target) for part in supernet.fixed for node in part.graph.nodes)


def test_norms_are_put_back_without_changing_the_function():
    counts = (3, 1)  # the classifier behind the pooling gets none: it would level the images of a batch
    for segment, count in zip(units_of(made(nets.PlainNet)), counts, strict=True):
        x = torch.rand(16, *segment.in_shape)
        unit = with_norms(segment.module, [x])
        norms = [module for module in unit.modules() if isinstance(module, nn.BatchNorm2d)]
        assert len(norms) == count
        with torch.no_grad():
            assert torch.allclose(unit(x), segment.module(x), atol=1e-5)
            settled = unit(x)
            for norm in norms:
                norm.train()
            assert torch.allclose(unit(x), settled, atol=1e-2)  # the statistics are those of the data


def test_narrow_copies_of_folded_networks_have_norms():
    supernet = elastify(made(nets.PlainNet), images(16))
    for body in supernet.bodies:
        assert any(isinstance(module, nn.BatchNorm2d) for module in body[0].modules())


@pytest.mark.parametrize("kind", [*KINDS, nets.BottleneckNet, nets.BasicNet])
@pytest.mark.parametrize("ratio", [1.2, 2.0, 3.0])
def test_the_storage_stays_within_the_ratio(kind, ratio):
    net = made(kind)
    supernet = elastify(net, images(8), ElasticOptions(storage_ratio=ratio))
    weights = sum(p.numel() for p in supernet.parameters()) / sum(p.numel() for p in net.parameters())
    assert weights <= ratio * 1.02  # statistics count too
    report = supernet.report()
    assert report.storage_ratio <= ratio
    assert report.storage_ratio == pytest.approx(weights, rel=0.05)


def test_more_storage_buys_more_alternatives():
    counts = [
        sum(group.size for group in elastify(made(nets.BasicNet), images(8), options).space.groups)
        for options in (
            ElasticOptions(storage_ratio=1.3),
            ElasticOptions(storage_ratio=2.0),
            ElasticOptions(storage_ratio=4.0),
        )
    ]
    assert counts == sorted(set(counts))


def test_a_storage_ratio_that_leaves_no_room_is_refused():
    with pytest.raises(UsageError, match="storage ratio"):
        ElasticOptions(storage_ratio=1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_adds_up(kind):
    supernet = elastify(made(kind), images(8))
    report, space = supernet.report(), supernet.space
    assert report.total_macs == supernet.macs(space.default)
    assert report.subnets == space.size()
    assert report.least_macs == min(supernet.macs(gates) for gates in all_gates(space))
    assert {row.name for row in report.units if row.alternatives} <= {group.name for group in space.groups}
    assert json.loads(json.dumps(report.to_json()))["storage_ratio"] == pytest.approx(report.storage_ratio, abs=1e-3)
    lines = report.to_text().splitlines()
    assert len(lines) == len(report.units) + 6
    assert len({line.find(row.kind) for line, row in zip(lines[1:], report.units, strict=False)}) == 1
    assert all(row.why_not_more for row in report.units if row.in_shape != row.out_shape)


def all_gates(space):
    def vectors(groups):
        if not groups:
            yield ()
            return
        for rest in vectors(groups[1:]):
            for value in range(groups[0].size):
                yield (value, *rest)

    assert math.prod(group.size for group in space.groups) < 5000
    return (space.gates(values) for values in vectors(space.groups))


def test_where_nothing_is_elastic_the_error_carries_the_report():
    plain = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 30 * 30, 4))
    with pytest.raises(NothingElasticError, match="no unit") as caught:
        elastify(plain, images(4))
    assert caught.value.report.units == ()
    assert caught.value.report.elastic_share == 0
    assert "no unit was found" in caught.value.report.to_text()


def test_inputs_that_do_not_fit_are_refused_with_a_reason():
    with pytest.raises(UsageError, match="cannot run on the example"):
        elastify(made(nets.BasicNet), torch.rand(4, 5, 32, 32))

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from builder.elastify import ElasticOptions, elastify, find_segments
from builder.elastify.channels import inner_widths
from builder.elastify.narrow import channel_importance, kept_channels, narrow
from builder.elastify.refit import refit_projection
from builder.elastify.trace import trace
from edge_runtime.errors import UsageError
from tests.builder.nets import BasicNet, BottleneckNet, images, made

pytestmark = pytest.mark.builder

NETS = [BottleneckNet, BasicNet]


@pytest.mark.parametrize("kind", NETS)
def test_segments_in_order_are_the_network(kind):
    net, x = made(kind), images(4)
    value = x
    with torch.no_grad():
        for segment in find_segments(trace(net, x)):
            assert tuple(value.shape[1:]) == segment.in_shape
            value = segment.module(value)
        assert torch.equal(value, net(x))


@pytest.mark.parametrize(("kind", "units"), [(BottleneckNet, 5), (BasicNet, 4)])
def test_every_block_is_found_as_a_unit(kind, units):
    segments = find_segments(trace(made(kind), images(2)))
    assert sum(segment.elastic for segment in segments) == units
    assert not segments[0].elastic
    assert not segments[-1].elastic


@pytest.mark.parametrize("kind", NETS)
def test_default_path_is_bit_equal_to_the_oracle(kind):
    net, x = made(kind), images(16)
    supernet = elastify(net, x)
    supernet.train()
    with torch.no_grad():
        assert torch.equal(supernet(x, supernet.space.default), net(x))


def test_features_are_given_by_unit_and_a_run_can_be_resumed_at_any_of_them():
    supernet, x = elastify(made(BottleneckNet), images(16)), images(4, seed=3)
    default = supernet.space.default
    merged = next(i for i, group in enumerate(supernet.space.groups) if group.window > 1)
    span, value = supernet.space.groups[merged].window, supernet.space.groups[merged].size - 1
    with torch.no_grad():
        known, run = supernet.features(x, default), supernet.features(x, default.replace(merged, value))
        resumed = supernet.resume(known, merged, default.replace(merged, value))
        assert torch.equal(run.outputs[0], supernet(x, default.replace(merged, value)))
        for index in range(len(supernet.units)):
            assert torch.equal(known.exits[index], supernet.alternative(index, 0)(known.entries[index]))
    inside = range(merged, merged + span)
    assert [run.exits[i] is None for i in inside] == [True] * (span - 1) + [False]
    assert [run.entries[i] is None for i in inside] == [False] + [True] * (span - 1)
    for first, second in zip((*run.outputs, *run.exits), (*resumed.outputs, *resumed.exits), strict=True):
        assert (first is None and second is None) or torch.equal(first, second)


def test_elastify_leaves_the_model_alone():
    net, x = made(BottleneckNet), images(16)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    supernet = elastify(net, x)
    for body in supernet.bodies:
        for parameter in body.parameters():
            parameter.data.add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(parameter.requires_grad for parameter in supernet.fixed.parameters())


@pytest.mark.parametrize("kind", NETS)
def test_units_get_two_narrower_copies_skips_and_merged_windows(kind):
    supernet = elastify(made(kind), images(16), ElasticOptions(widths=(0.5, 0.25)))
    labels = [set(group.labels) for group in supernet.space.groups]
    assert all({"original", "narrow50", "narrow25"} <= found for found in labels)
    skippable = [supernet.segments[unit.segment].keeps_shape for unit in supernet.units]
    assert [("skip" in found) for found in labels] == skippable
    assert any(group.window > 1 for group in supernet.space.groups)


@pytest.mark.parametrize("kind", NETS)
def test_cheaper_labels_cost_fewer_multiply_accumulates(kind):
    supernet = elastify(made(kind), images(16))
    space = supernet.space
    full = supernet.macs(space.default)
    for index, group in enumerate(space.groups):
        assert all(supernet.macs(space.default.replace(index, value)) < full for value in range(1, group.size))


def test_narrowed_copy_keeps_the_important_channels():
    net = made(BottleneckNet)
    unit = find_segments(trace(net, images(2)))[2].module
    width = inner_widths(unit)[0]
    reader = unit.get_submodule(width.consumers[-1])
    with torch.no_grad():  # nobody reads the first 64 of 128 channels: they can go without a trace
        reader.weight[:, :64] = 0
    entering = [torch.rand(8, 32, 8, 8)]
    importance = channel_importance(unit, entering)
    copied = narrow(unit, 0.5, importance)
    with torch.no_grad():
        assert torch.allclose(copied(entering[0]), unit(entering[0]), atol=1e-5)
    assert inner_widths(copied)[0].channels == 64


def test_closed_form_fit_is_better_than_the_plain_cut_at_every_unit():
    net, x = made(BottleneckNet), images(64)
    supernet = elastify(net, x)
    with torch.no_grad():
        entering = supernet.features(x, supernet.space.default).entries
        for index, unit in enumerate(supernet.units):
            original, inputs = supernet.segments[unit.segment].module, entering[index]
            cut = narrow(original, 0.5, channel_importance(original, [inputs])).eval()
            plain_error = (cut(inputs) - original(inputs)).pow(2).mean()
            fitted_error = (supernet.alternative(index, 1)(inputs) - original(inputs)).pow(2).mean()
            assert fitted_error < 0.8 * plain_error


@pytest.mark.parametrize(("channels", "ratio", "kept"), [(96, 0.5, 48), (144, 0.25, 32), (16, 0.5, 8), (8, 0.5, 8)])
def test_kept_channels_come_in_blocks(channels, ratio, kept):
    assert kept_channels(channels, ratio) == kept


def test_a_network_without_units_is_refused_with_a_reason():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    with pytest.raises(UsageError, match="no unit"):
        elastify(plain, images(4))


def test_a_network_that_cannot_be_traced_is_refused_with_a_reason():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UsageError, match="cannot be traced"):
        elastify(Branching(), images(4))


@pytest.mark.parametrize("widths", [(0.0,), (1.0,), (1.5,)])
def test_impossible_widths_are_refused(widths):
    with pytest.raises(UsageError):
        ElasticOptions(widths=widths)


@pytest.mark.parametrize(
    ("module", "name", "units"), [("resnet", "resnet18", 8), ("mobilenetv2", "mobilenetv2_wd4", 17)]
)
def test_architectures_that_nobody_here_wrote(module, name, units):
    # The first of the 17 bottlenecks of this MobileNetV2 has 8 inner channels: nothing to narrow, so it stays fixed.
    # Its head widens to 1,280 channels before the pooling; that of ResNet has no hidden layer.
    models = pytest.importorskip(f"pytorchcv.models.{module}", reason="pip install --no-deps pytorchcv")
    torch.manual_seed(0)
    net = getattr(models, name)(pretrained=False).eval()
    x = torch.randn(2, 3, 224, 224)
    supernet = elastify(net, x, ElasticOptions(merged_widths=(0.5,)))
    assert len(supernet.units) == units
    assert sum("narrow50" in group.labels for group in supernet.space.groups) >= units - 1
    with torch.no_grad():
        assert torch.equal(supernet(x, supernet.space.default), net(x))


class Writing(nn.Module):
    """Residual blocks that write into their inputs, as much published code does; the second reads what was written."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        self.convs = nn.ModuleList(nn.Conv2d(32, 32, 3, 1, 1) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(32) for _ in range(4))
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.norms[1](self.convs[1](self.relu(self.norms[0](self.convs[0](self.relu(x))))))
        y += x
        x = nn.functional.relu(y, inplace=True)
        y = self.norms[3](self.convs[3](self.norms[2](self.convs[2](x)).relu_()))
        return self.head(self.relu(x.add_(y)).mean((2, 3)))


def test_operations_that_write_into_their_input_change_nothing():
    net, x = made(Writing), images(64)
    supernet = elastify(net, x)
    with torch.no_grad():
        assert torch.equal(supernet(x, supernet.space.default), net(x))
        features = supernet.features(x, supernet.space.default).entries
        kept = [value.clone() for value in features]
        for index, unit in enumerate(supernet.units):
            original, inputs = supernet.segments[unit.segment].module, features[index]
            cut = narrow(original, 0.5, channel_importance(original, [inputs])).eval()
            plain_error = (cut(inputs) - original(inputs)).pow(2).mean()
            fitted_error = (supernet.alternative(index, 1)(inputs) - original(inputs)).pow(2).mean()
            assert fitted_error < 0.8 * plain_error
    assert all(torch.equal(value, before) for value, before in zip(features, kept, strict=True))


def test_widths_may_be_given_in_any_order():
    supernet = elastify(made(BottleneckNet), images(16), ElasticOptions(widths=(0.25, 0.5)))
    assert supernet.space.groups[0].labels[:3] == ("original", "narrow50", "narrow25")


def test_an_addition_of_unequal_widths_ties_nothing():
    class Mask(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.one, self.back = nn.Conv2d(16, 32, 1), nn.Conv2d(16, 1, 1), nn.Conv2d(32, 16, 1)

        def forward(self, x):
            return x + self.back(self.wide(x) + self.one(x))

    assert inner_widths(trace(Mask(), torch.rand(1, 16, 4, 4))) == []


def test_a_projection_that_others_read_is_not_refitted():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer, self.norm = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 16, 1), nn.BatchNorm2d(16)

        def forward(self, x):
            y = self.norm(self.outer(torch.relu(self.inner(x))))
            return y + torch.sigmoid(y)

    unit, x = trace(Twice(), torch.rand(2, 16, 4, 4)), torch.rand(2, 16, 4, 4)
    assert not refit_projection(unit, [x], [x], 0)

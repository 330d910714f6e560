"""Alternatives in 8 bits: layers that give onnxruntime's own codes, copies that keep the function."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import fx, nn
from torch.nn import functional

from builder.distill.losses import normalised_error
from builder.elastify import elastify
from builder.elastify.cost import storage_bytes
from builder.elastify.trace import trace
from builder.int8 import (
    Coding,
    DecodedConv,
    DecodedLinear,
    Dequantize,
    Quantize,
    QuantizedConv,
    quantised,
    with_int8,
)
from builder.int8.ranges import coding_of, weight_scale
from edge_runtime.backends import (
    open_session,
)
from edge_runtime.errors import UsageError
from tests.builder.lowered import exported, with_shapes
from tests.builder.nets import BasicNet, BottleneckNet, DenseNet, FireNet, MixNet, PlainNet, images, made

pytestmark = pytest.mark.builder

NETS = [BottleneckNet, BasicNet, DenseNet, FireNet, MixNet, PlainNet]


def random_layer(*, inputs: int = 9, outputs: int = 12, kernel: int = 3, seed: int = 0, **more) -> QuantizedConv:
    torch.manual_seed(seed)
    settings = {"stride": (1, 1), "pads": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1} | more
    weight = torch.randint(-63, 64, (outputs, inputs // settings["groups"], kernel, kernel), dtype=torch.int8)
    scale, bias = torch.rand(outputs) * 0.02 + 0.001, torch.randint(-5000, 5000, (outputs,), dtype=torch.int32)
    return QuantizedConv(
        weight, scale, bias, taken=Coding.of_range(-2.0, 3.1), given=Coding.of_range(0, 5.9), **settings
    )


class Coded(nn.Module):
    """Makes as many channels as the layer takes out of an image's three, exactly; codes, computes, decodes."""

    def __init__(self, layer: QuantizedConv) -> None:
        super().__init__()
        self.first, self.layer, self.last = Quantize(layer.taken), layer, Dequantize(layer.given)
        self.copies = layer.weight.shape[1] * layer.groups // 3

    def forward(self, x):
        x = torch.cat([x * 0.5 ** (number % 3) for number in range(self.copies)], 1)
        return self.last(self.layer(self.first(x)))


class Leaf(fx.Tracer):
    def is_leaf_module(self, m, module_qualified_name):
        return isinstance(
            m, (Quantize, Dequantize, QuantizedConv, DecodedConv, DecodedLinear)
        ) or super().is_leaf_module(m, module_qualified_name)


def run_alone(path, net, x):
    """What onnxruntime gives for a module of one image, flattened to [N, K]."""
    flat = nn.Sequential(net, nn.Flatten(1)).eval()
    traced = with_shapes(fx.GraphModule(flat, Leaf().trace(flat)), x)
    bundle = exported(path, traced, x, flat(x))
    return open_session(bundle).run({"image": x.numpy()}, bundle.manifest.space.default)["logits"]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"kernel": 1, "pads": (0, 0, 0, 0)},
        {"stride": (2, 2), "pads": (0, 0, 1, 1)},
        {"inputs": 15, "outputs": 15, "groups": 15},
        {"inputs": 12, "outputs": 12, "groups": 3, "pads": (2, 1, 0, 1)},
        {"dilation": (2, 1), "pads": (2, 1, 2, 1)},
        {"inputs": 180, "outputs": 4, "kernel": 5, "pads": (2, 2, 2, 2)},
    ],
    ids=["plain", "pointwise", "strided", "depthwise", "grouped", "dilated", "more than float32 can sum"],
)
def test_a_layer_gives_the_codes_that_onnxruntime_gives(more, tmp_path):
    layer = random_layer(**more)
    x = torch.randn(3, 3, 9, 11) * 1.5
    net = Coded(layer)
    found = run_alone(tmp_path / "net.nnf", net, x)
    np.testing.assert_array_equal(found, net(x).flatten(1).numpy())
    assert len(np.unique(found)) > 20


def test_a_decoded_layer_is_the_convolution_of_what_its_codes_stand_for(tmp_path):
    coded, x, like = random_layer(inputs=3), torch.randn(2, 3, 9, 9), nn.Conv2d(3, 12, 3, padding=1)
    layer = DecodedConv(coded.weight, coded.weight_scale, torch.randn(12), like)
    weight = coded.weight.float() * coded.weight_scale.view(-1, 1, 1, 1)
    assert torch.allclose(layer(x), functional.conv2d(x, weight, layer.bias, padding=1), atol=1e-5)
    last = DecodedLinear(coded.weight.flatten(1)[:, :12], coded.weight_scale, torch.randn(12))
    net = nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), last)
    assert torch.allclose(
        last(x.flatten(1)[:, :12]), functional.linear(x.flatten(1)[:, :12], last.decoded(), last.bias)
    )
    found = run_alone(tmp_path / "net.nnf", net, x)
    np.testing.assert_allclose(found, net(x).numpy(), atol=1e-4)


def test_codings_have_a_code_for_zero_and_round_to_the_nearest():
    for low, high in ((-1.0, 3.0), (0.5, 2.0), (-2.0, -1.0), (0.0, 0.0), (-1e-20, 1e-20)):
        coding = Coding.of_range(low, high)
        assert coding.values(coding.codes(torch.zeros(1))) == 0
        values = torch.linspace(min(low, 0), max(high, 0), 1000)
        assert (coding.values(coding.codes(values)) - values).abs().max() <= coding.scale


@pytest.mark.parametrize("kind", NETS, ids=lambda kind: kind.__name__)
def test_copies_of_units_keep_their_function_and_share_their_weights(kind):
    supernet, x = elastify(made(kind), images(32)), images(16, seed=5)
    seen = supernet.features(images(64, seed=6), supernet.space.default)
    fresh = supernet.features(x, supernet.space.default)
    looked_at = 0
    for index in range(len(supernet.units)):
        unit = supernet.alternative(index, 0)
        made_of = quantised(unit, [seen.entries[index]])
        if made_of is None:
            continue
        looked_at += 1
        wanted = fresh.exits[index]
        assert normalised_error(made_of.coded(fresh.entries[index]), wanted) < 0.01
        assert normalised_error(made_of.decoded(fresh.entries[index]), wanted) < 0.005
        coded = {m.weight.data_ptr() for m in made_of.coded.modules() if isinstance(m, QuantizedConv)}
        decoded = {m.weight.data_ptr() for m in made_of.decoded.modules() if isinstance(m, DecodedConv)}
        assert coded
        assert coded <= decoded
        assert not any(isinstance(m, nn.BatchNorm2d) for m in made_of.coded.modules())
    assert looked_at


def test_a_channel_whose_weights_are_next_to_nothing_keeps_its_bias():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU6(), nn.Conv2d(4, 4, 1)).eval().requires_grad_(False)
    net[0].weight[1] = 1e-13
    net[0].bias[1] = 2.5
    x = images(8)
    found = quantised(trace(net, x[:2]), [x])
    assert normalised_error(found.coded(x), net(x)) < 0.01


def test_what_stays_in_float32_is_shared_with_an_original_and_else_stored_in_8_bits():
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(16, 50)
    ).eval()
    traced, x = trace(net, images(2)), images(8)
    kept, alone = quantised(traced, [x], stays=True), quantised(traced, [x])
    own = storage_bytes(traced)
    assert storage_bytes(nn.ModuleList([traced, kept.coded])) < 1.2 * own
    assert storage_bytes(nn.ModuleList([alone.coded, alone.decoded])) < 0.5 * own
    for module in (kept.coded, alone.coded, alone.decoded):
        assert normalised_error(module(x), net(x)) < 0.02


def test_biases_take_over_the_mean_error_of_the_weights():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)).eval().requires_grad_(False)
    x = images(32) + 2  # a mean to be wrong about
    found = quantised(trace(net, x[:2]), [x[:20], x[20:]])
    for module in (found.coded, found.decoded):
        errors = (module(x) - net(x)).mean((0, 2, 3)).abs()
        assert errors.max() < 0.2 * (module(x) - net(x)).std()


def test_ranges_are_cut_where_few_values_are_far_away():
    values = torch.cat([torch.randn(50_000), torch.tensor([9.0, -9.0])])
    whole, found = Coding.of_range(-9.0, 9.0), coding_of(values)
    errors = [(coding.values(coding.codes(values)) - values).square().mean() for coding in (whole, found)]
    assert found.scale < whole.scale
    assert errors[1] < 0.9 * errors[0]
    rows = torch.randn(4, 50_000, 1, 1)
    rows[:, 0] = 9.0
    assert (weight_scale(rows) < 9.0 / 63).all()


def test_zeros_around_an_image_are_a_part_of_the_layer():
    supernet = elastify(made(BasicNet), images(16))
    entries = supernet.features(images(16), supernet.space.default).entries
    coded = [quantised(supernet.alternative(index, 0), [entry]).coded for index, entry in enumerate(entries)]
    assert any(layer.pads == (0, 0, 1, 1) for piece in coded for layer in piece.modules() if hasattr(layer, "pads"))
    assert not any(node.target is functional.pad for piece in coded for node in piece.graph.nodes)


@pytest.mark.parametrize(
    "how", [{"padding": (1,)}, {"padding": [1]}, {"padding": 1, "dilation": (1,)}, {"stride": [2]}]
)
def test_sizes_that_torch_takes_as_a_list_of_one_are_taken(how, tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval().requires_grad_(False)
    for name, value in how.items():
        setattr(net[0], name, value)
    x = images(8)
    found = quantised(trace(net, x[:2]), [x])
    for name in ("coded", "decoded"):
        module = getattr(found, name)
        assert normalised_error(module(x), net(x)) < 0.01
        assert normalised_error(torch.from_numpy(run_alone(tmp_path / name, module, x)), net(x).flatten(1)) < 0.01


def test_weights_that_something_else_reads_too_stay():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3)

        def forward(self, x):
            return self.second(self.first(x)).relu() * self.second.weight.mean()

    net, x = Tied().eval().requires_grad_(False), images(8)
    found = quantised(trace(net, x[:2]), [x])
    for module in (found.coded, found.decoded):
        assert normalised_error(module(x), net(x)) < 0.01


def test_a_piece_without_convolutions_is_stored_in_8_bits_unless_it_stays():
    net = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 5)).eval()
    traced, x = trace(net, images(2)), images(8)
    assert quantised(traced, [x], stays=True) is None
    found = quantised(traced, [x])
    assert found.coded is None
    assert storage_bytes(found.decoded) < 0.4 * storage_bytes(traced)
    assert normalised_error(found.decoded(x), net(x)) < 0.005


def test_codings_and_supernets_that_cannot_be_are_refused():
    for scale, zero in ((0.0, 0), (-1.0, 0), (float("nan"), 0), (float("inf"), 0), (1.0, -1), (1.0, 256)):
        with pytest.raises(UsageError, match="a coding has"):
            Coding(scale, zero)
    supernet = with_int8(elastify(made(BottleneckNet), images(16)), images(16), storage_ratio=3.0)
    with pytest.raises(UsageError, match="8 bits already"):
        with_int8(supernet, images(16), storage_ratio=3.0)


def test_a_state_tells_codings_apart():
    one, other = (Quantize(Coding(scale, 3)).state_dict() for scale in (0.1, 0.3))
    assert one.keys() == other.keys()
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


def test_layers_that_follow_each_other_hand_on_codes():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Hardswish(), nn.Conv2d(8, 4, 1)
    )
    coded = quantised(trace(net.eval(), images(2)), [images(8)]).coded
    kinds = [type(coded.get_submodule(n.target)).__name__ for n in coded.graph.nodes if n.op == "call_module"]
    chain = ["Quantize", "QuantizedConv", "QuantizedConv", "Dequantize", "Hardswish"]
    assert kinds == [*chain, "Quantize", "QuantizedConv", "Dequantize"]


def test_a_convolution_of_one_pixel_computes_in_float32():
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(8, 5)).eval()
    assert quantised(trace(net, images(2)), [images(8)]).coded is None


def test_what_is_not_finite_is_left():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval().requires_grad_(False)
    traced = trace(net, images(2))
    assert quantised(traced, [images(8)]) is not None
    assert quantised(traced, [images(8) / 0]) is None
    last = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))  # is not in 8 bits itself
    longer = nn.Sequential(*net, *last).eval().requires_grad_(False)
    assert quantised(trace(longer, images(2)), [images(8)]) is not None
    longer[-1].weight[0] = float("nan")
    assert quantised(trace(longer, images(2)), [images(8)]) is None

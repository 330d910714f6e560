"""Alternatives in 8 bits: layers that give onnxruntime's own codes, copies that keep the function, bundles."""

import dataclasses
import itertools
import json
import platform
import random
from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import fx, nn
from torch.nn import functional

from builder.distill import measure_prior
from builder.elastify import ElasticOptions, elastify
from builder.elastify.cost import storage_bytes
from builder.elastify.trace import trace
from builder.errors import BuildError
from builder.export import check_parity, is_coded, pack, static_graph
from builder.export.codes import check_codes
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
    SessionOptions,
    compile_bundle,
    export_subnet,
    open_compiled,
    open_session,
    open_static,
)
from edge_runtime.backends.base import relative_difference
from edge_runtime.backends.onnx.modules import read_tensor
from edge_runtime.backends.onnx.passes.names import graphs_of
from edge_runtime.backends.onnx.prepared import PreparedGraph
from edge_runtime.bundle import Bundle
from edge_runtime.errors import UsageError
from edge_runtime.gates import is_in_8_bits
from edge_runtime.seeds import covering_vectors, random_gates
from tests.builder.lowered import exported, with_shapes
from tests.builder.nets import BasicNet, BottleneckNet, DenseNet, FireNet, MixNet, PlainNet, images, made
from tests.builder.test_export import INFO

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


def normalised_error(found, wanted):
    return ((found - wanted).square().mean() / wanted.var()).item()


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


@pytest.fixture(scope="module", params=NETS, ids=lambda kind: kind.__name__)
def finished(request, tmp_path_factory):
    oracle = made(request.param)
    trained = elastify(oracle, images(32), ElasticOptions(storage_ratio=3.0))
    supernet = with_int8(trained, images(64, seed=1), storage_ratio=3.0)
    path = tmp_path_factory.mktemp("bundle") / "net.nnf"
    return oracle, trained, supernet, pack(supernet, measure_prior(supernet, images(16, seed=2)), INFO, path)


def test_the_default_path_is_the_network_and_each_copy_its_source(finished):
    oracle, trained, supernet, _ = finished
    x, copies = images(32, seed=3), 0
    with torch.no_grad():
        assert torch.equal(supernet(x, supernet.space.default), oracle(x))
        for index, group in enumerate(supernet.space.groups):
            sources = trained.space.groups[index].labels
            assert [label for label in group.labels if "int8" not in label] == list(sources)
            assert sorted(group.spans) == list(group.spans)
            for value, label in enumerate(group.labels):
                source = label.removesuffix("-int8") if label != "int8" else "original"
                wanted = trained(x, trained.space.default.replace(index, sources.index(source)))
                found = supernet(x, supernet.space.default.replace(index, value))
                assert normalised_error(found, wanted) < 0.02
                copies += source != label
    assert copies >= len(supernet.units)


def test_the_report_says_what_is_there(finished):
    _, trained, supernet, _ = finished
    report = supernet.report()
    assert report.supernet_bytes == storage_bytes(supernet)
    assert report.storage_ratio < trained.report().storage_ratio
    assert report.subnets == supernet.space.size()
    labels = [row.alternatives for row in report.units if row.name]
    assert labels == [group.labels[1:] for group in supernet.space.groups]


def test_the_bundle_computes_what_torch_computes(finished):
    oracle, _, supernet, bundle = finished
    report = check_parity(supernet, oracle, bundle, images(64, seed=3))
    assert report.oracle_error <= 1e-4
    assert report.alternative_error <= 1e-3
    assert report.coded_error <= 0.1
    coded = [gates for gates in covering_vectors(supernet.space) if is_coded(supernet, gates)]
    assert coded
    assert not is_coded(supernet, supernet.space.default)
    x = {"image": images(32, seed=4).numpy()}
    found, fixed = open_session(bundle).run(x, coded[0]), open_static(static_graph(supernet, coded[0])).run(x)
    assert relative_difference(found["logits"], fixed["logits"]) <= 0.1


def test_one_unit_in_8_bits_gives_most_images_the_very_same_answer(finished):
    """What differs elsewhere is single values that were rounded to the next code."""
    _, _, supernet, bundle = finished
    session, x = open_session(bundle), images(64, seed=4)
    for index, group in enumerate(supernet.space.groups):
        gates = supernet.space.default.replace(index, group.labels.index("int8") if "int8" in group.labels else 0)
        with torch.no_grad():
            wanted = supernet(x, gates).numpy()
        each = np.abs(session.run({"image": x.numpy()}, gates)["logits"] - wanted).max(1) / np.abs(wanted).max()
        assert np.median(each) <= 1e-4


@pytest.mark.parametrize("tensor", [1, 2, 3, 4, 6, 7, 8])
def test_one_wrong_number_of_a_layer_in_8_bits_is_found(finished, tensor):
    """Though the outputs hardly show it."""
    import onnx
    from onnx import numpy_helper

    oracle, _, supernet, bundle = finished
    model = onnx.load_from_string(bundle.model_bytes)
    layer = next(n for graph in graphs_of(model.graph) for n in graph.node if n.op_type == "QLinearConv")
    stored = next(each for each in model.graph.initializer if each.name == layer.input[tensor])
    layer.input[tensor] = "another"
    values = read_tensor(stored, weights=bundle.weights).copy()
    values.flat[-1] += 1
    model.graph.initializer.append(numpy_helper.from_array(values, "another"))
    damaged = dataclasses.replace(bundle, model_bytes=model.SerializeToString())
    with pytest.raises(BuildError, match="differs from torch"):
        check_parity(supernet, oracle, damaged, images(16))


def test_codings_and_sizes_are_compared_too(finished):
    import onnx

    _, _, supernet, bundle = finished
    assert check_codes(supernet, bundle) > 2 * len(supernet.units)
    for operator, change in (
        ("DequantizeLinear", lambda node: node.input.__setitem__(1, "another")),
        ("QuantizeLinear", lambda node: node.input.__setitem__(1, "another")),
        ("QLinearConv", lambda node: next(a for a in node.attribute if a.name == "pads").ints.__setitem__(0, 7)),
    ):
        model = onnx.load_from_string(bundle.model_bytes)
        change(next(n for g in graphs_of(model.graph) for n in g.node if n.op_type == operator and len(n.input) > 2))
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.123, np.float32), "another"))
        with pytest.raises(BuildError, match="differs from torch"):
            check_codes(supernet, dataclasses.replace(bundle, model_bytes=model.SerializeToString()))


def test_weights_in_8_bits_are_decoded_once(finished, tmp_path):
    """What is prepared decodes no weight in a run, and answers as the portable graph."""
    import onnx

    _, _, supernet, bundle = finished
    compile_bundle(bundle, SessionOptions(), tmp_path, key="k")
    skeleton = onnx.load(str(tmp_path / "skeleton.onnx"), load_external_data=False)
    codes = {
        tensor.name for graph in graphs_of(skeleton.graph) for tensor in graph.initializer if tensor.data_type == 3
    }
    nodes = [node for graph in graphs_of(skeleton.graph) for node in graph.node]
    assert any(node.op_type == "QLinearConv" for node in nodes)
    assert not [node for node in nodes if node.op_type == "DequantizeLinear" and node.input[0] in codes]
    prepared, portable = open_compiled(bundle, SessionOptions(), tmp_path, key="k"), open_session(bundle)
    x = {"image": images(4, seed=7).numpy()}
    subnets = [*covering_vectors(supernet.space), *covering_vectors(supernet.space, but=is_in_8_bits)]
    assert {is_coded(supernet, gates) for gates in subnets} == {False, True}
    with prepared.hold(subnets[:2]):
        for gates in subnets:
            found, wanted = (session.run(x, gates)["logits"] for session in (prepared, portable))
            assert relative_difference(wanted, found) <= (0.1 if is_coded(supernet, gates) else 1e-4)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the NCHWc layout exists on x86 only")
def test_between_the_blocked_layout_and_codes_there_is_one_conversion(tmp_path):
    import onnx

    trained = elastify(made(BottleneckNet), images(32))
    supernet = with_int8(trained, images(32), storage_ratio=3.0)
    bundle = pack(supernet, measure_prior(supernet, images(16)), INFO, tmp_path / "net.nnf")
    folder = tmp_path / "prepared"
    folder.mkdir()
    compile_bundle(bundle, SessionOptions(), folder, key="k")
    skeleton = onnx.load(str(folder / "skeleton.onnx"), load_external_data=False)
    nodes = [node for graph in graphs_of(skeleton.graph) for node in graph.node]
    made_of = {name: node for node in nodes for name in node.output}
    encoders = [node for node in nodes if node.op_type == "QuantizeLinear"]
    assert encoders
    assert not [node for node in nodes if node.op_type == "Transpose"]
    assert {made_of[node.input[0]].op_type for node in encoders} == {"ReorderOutput"}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the NCHWc layout exists on x86 only")
@pytest.mark.parametrize("kind", [BottleneckNet, BasicNet, PlainNet])
def test_between_units_in_8_bits_nothing_is_converted(kind, tmp_path):
    """A subnet alone has the outputs of the gated graph all the same, whatever its units are."""
    import onnx

    supernet = with_int8(elastify(made(kind), images(32)), images(32), storage_ratio=3.0)
    bundle = pack(supernet, measure_prior(supernet, images(16)), INFO, tmp_path / "net.nnf")
    folder = tmp_path / "prepared"
    folder.mkdir()
    compile_bundle(bundle, SessionOptions(), folder, key="k")
    prepared, space, x = PreparedGraph(folder, bundle.manifest, SessionOptions()), supernet.space, images(3, seed=9)
    coded = space.gates([group.labels.index("int8") for group in space.groups])
    kinds = Counter(node.op_type for node in onnx.load_from_string(prepared.subnet(coded)).graph.node)
    assert kinds["ReorderInput"] <= 2  # behind the last unit, in front of the first, and of what is behind them
    assert kinds["ReorderOutput"] <= 2
    if kind is PlainNet:  # no sum between its units
        assert kinds["QuantizeLinear"] == kinds["DequantizeLinear"] == 1
    assert json.loads((folder / "record.json").read_text())["form"] == "crossing"
    rng = random.Random(0)
    for gates in (coded, *covering_vectors(space), *(random_gates(space, rng) for _ in range(20))):
        inputs = {"image": x.numpy()}
        wanted, found = prepared.gated.run(None, prepared.feeds(inputs, gates)), prepared.alone(gates).run(None, inputs)
        assert relative_difference(wanted[0], found[0]) < 1e-5


def test_what_is_between_two_units_has_one_coding():
    supernet = with_int8(elastify(made(PlainNet), images(32)), images(32), storage_ratio=3.0)
    pieces = [supernet.alternative(i, group.labels.index("int8")) for i, group in enumerate(supernet.space.groups)]
    layers = [[layer for layer in piece.modules() if isinstance(layer, QuantizedConv)] for piece in pieces]
    assert len(layers) > 1
    for before, after in itertools.pairwise(layers):
        assert before[-1].given == after[0].taken


def test_a_subnet_to_take_away_has_no_weights_to_decode(finished):
    import onnx

    _, _, supernet, bundle = finished
    for gates in covering_vectors(supernet.space)[:3]:
        static = onnx.load_from_string(export_subnet(bundle, gates))
        names = {tensor.name for tensor in static.graph.initializer}
        assert not [n for n in static.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in names]


def test_the_report_is_of_what_the_bundle_stores(finished):
    import onnx

    _, _, supernet, bundle = finished
    tensors = onnx.load_from_string(bundle.model_bytes).graph.initializer
    inside = sum(len(tensor.raw_data) for tensor in tensors)
    told = supernet.report().supernet_bytes
    assert 0.9 * told < len(bundle.weights) + inside < 1.03 * told + 2048


def test_originals_get_copies_as_far_as_the_storage_goes():
    """Those first that compute the most per byte."""
    trained = elastify(made(BottleneckNet), images(32), ElasticOptions(widths=(0.5,), window=1))
    least, most = (with_int8(trained, images(32), storage_ratio=ratio).report().storage_ratio for ratio in (1.0, 9.0))
    per_byte = [unit.alternatives[0].macs / storage_bytes(trained.fixed[unit.segment]) for unit in trained.units]
    before: set[int] = set()
    for share in (0.0, 0.3, 0.6, 1.0):
        limit = least + share * (most - least) + 1e-6
        supernet = with_int8(trained, images(32), storage_ratio=limit)
        assert supernet.report().storage_ratio <= limit
        chosen = {index for index, group in enumerate(supernet.space.groups) if "int8" in group.labels}
        assert before <= chosen
        if 0.0 < share < 1.0:
            assert per_byte.index(max(per_byte)) in chosen
            assert len(chosen) < len(trained.units)
        before = chosen
    assert before == set(range(len(trained.units)))


def test_the_bundle_survives_being_written_and_read(finished, tmp_path):
    *_, bundle = finished
    assert Bundle.read(bundle.source).digest == bundle.digest

"""Supernets with alternatives in 8 bits: what the bundle computes, stores and refuses."""

import dataclasses
import itertools
import json
import platform
import random
from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch")


from builder.distill import measure_prior
from builder.distill.losses import normalised_error
from builder.elastify import ElasticOptions, elastify
from builder.elastify.cost import storage_bytes
from builder.errors import BuildError
from builder.export import check_parity, is_coded, pack, static_graph
from builder.export.codes import check_codes
from builder.int8 import (
    QuantizedConv,
    with_int8,
)
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
from edge_runtime.gates import is_in_8_bits
from edge_runtime.seeds import covering_vectors, random_gates
from tests.builder.nets import BasicNet, BottleneckNet, DenseNet, FireNet, MixNet, PlainNet, images, made
from tests.builder.test_export import INFO

pytestmark = pytest.mark.builder

NETS = [BottleneckNet, BasicNet, DenseNet, FireNet, MixNet, PlainNet]


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


@pytest.mark.parametrize("finished", [BasicNet, FireNet], indirect=True)
def test_a_unit_in_8_bits_whose_numbers_are_right_but_whose_output_is_not_is_refused(finished):
    import onnx

    oracle, _, supernet, bundle = finished
    model = onnx.load_from_string(bundle.model_bytes)
    _, *branches = graphs_of(model.graph)
    branch = next(each for each in branches if any(n.op_type == "QLinearConv" for n in each.node))
    output = branch.output[0]
    branch.node.append(onnx.helper.make_node("Add", [output.name, output.name], ["doubled"], "double"))
    output.name = "doubled"
    damaged = dataclasses.replace(bundle, model_bytes=model.SerializeToString())
    assert check_codes(supernet, damaged)
    with pytest.raises(BuildError, match="the exported graph differs from torch"):
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

"""The graph check on layers whose channels gates switch: the one form passes, everything beside it is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_runtime.backends import check_graph, open_session
from edge_runtime.backends.base import random_inputs
from edge_runtime.backends.onnx import check
from edge_runtime.bundle import Bundle, TensorSpec
from edge_runtime.errors import BundleError
from edge_runtime.gates import GateGroup, GateSpace
from tests.support.modular import modular_bundle, supernets
from tests.support.mutate import all_graphs

pytest.importorskip("builder.onnx_writer")

Edit = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return modular_bundle(tmp_path_factory.mktemp("bundle") / "modules.nnf")


def edited(bundle: Bundle, edit: Edit) -> Bundle:
    model = onnx.load_from_string(bundle.model_bytes)
    edit(model)
    return replace(bundle, model_bytes=model.SerializeToString(deterministic=True))


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for graph in all_graphs(model.graph) for n in graph.node if n.name == name)


def wire(name: str, index: int, value: str) -> Edit:
    """Another input for a node."""
    return lambda model: node(model, name).input.__setitem__(index, value)


def number(name: str, value: int | None) -> Edit:
    """Another value for the one attribute of a node."""

    def edit(model: onnx.ModelProto) -> None:
        if value is None:
            node(model, name).ClearField("attribute")
        else:
            node(model, name).attribute[0].i = value

    return edit


def entries(values: Any, name: str = "layer0.entries") -> Edit:
    """Other entries of the gate vector for the channels of a layer; of 64."""

    def edit(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(values, np.int64), name))

    return edit


def between(after: str, op: str, *more: str, **attributes: Any) -> Edit:
    """A node that reads what node `after` gives, in the place of whoever read it."""

    def edit(model: onnx.ModelProto) -> None:
        made = node(model, after).output[0]
        for each in model.graph.node:
            each.input[:] = ["added.out" if name == made else name for name in each.input]
        at = next(i for i, each in enumerate(model.graph.node) if each.name == after)
        model.graph.node.insert(at + 1, helper.make_node(op, [made, *more], ["added.out"], "added", **attributes))

    return edit


def beside(before: str, op: str, inputs: list[str], **attributes: Any) -> Edit:
    """A node whose result nothing reads."""

    def edit(model: onnx.ModelProto) -> None:
        at = next(i for i, each in enumerate(model.graph.node) if each.name == before)
        model.graph.node.insert(at, helper.make_node(op, inputs, ["added.out"], "added", **attributes))

    return edit


def depthwise(model: onnx.ModelProto) -> None:
    """A depthwise convolution between the two of layer0."""
    weight = np.zeros((64, 1, 3, 3), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "deep"))
    between("layer0.act", "Conv", "deep", group=64, pads=[1, 1, 1, 1])(model)


def in_a_branch(model: onnx.ModelProto) -> None:
    """The convolution of layer0 once more, inside a decision."""
    branch = next(graph for graph in all_graphs(model.graph) if graph.name == "group_2_0")
    inputs = ["stem.act.out", "layer0.weight.pick.out"]
    branch.node.insert(0, helper.make_node("Conv", inputs, ["inner.out"], "inner", pads=[1, 1, 1, 1]))


def picked_in_a_branch(model: onnx.ModelProto) -> None:
    branch = next(graph for graph in all_graphs(model.graph) if graph.name == "group_2_0")
    inputs = ["layer0.weight", "layer0.on.out"]
    branch.node.insert(0, helper.make_node("Compress", inputs, ["inner.out"], "inner", axis=0))


M = np.repeat(np.arange(8), 8)

REFUSED: list[tuple[str, Edit, str]] = [
    ("entry that is not there", entries([*M[:-1], 41]), "has no entry 41"),
    ("entry below 0", entries([*M[:-1], -1]), "has no entry -1"),
    ("entry of 2^63", entries([*M[:-1], 2**63 - 1]), "has no entry 9223372036854775807"),
    ("no entry for a module", entries(np.minimum(M, 6)), "compresses by the entries [0, 1, 2, 3, 4, 5, 6]"),
    ("entry of another layer", entries([*M[:-1], 8]), "compresses by the entries [0, 1, 2, 3, 4, 5, 6, 7, 8]"),
    ("entry of a choice", entries([*M[:-1], 16]), "compresses by the entries [0, 1, 2, 3, 4, 5, 6, 7, 16]"),
    ("only a choice", entries([16] * 64), "compresses by the entries [16]"),
    ("entries in two dimensions", entries(M.reshape(8, 8)), "neither one constant nor a stored vector"),
    ("one entry", entries([0]), "only the gates of channels are cast"),
    ("one entry alone", entries(0), "only the gates of channels are cast"),
    ("fewer entries", entries(M[:-8]), "does not have 56 channels"),
    ("more entries", entries([*M, *M]), "does not have 128 channels"),
    ("too many entries", entries(np.zeros(2**14 + 1)), "neither one constant nor a stored vector"),
    ("gathered from what was gathered", between("layer0.gather", "Gather", "layer0.entries", axis=0), "not what was"),
    ("entries that are no constant", wire("layer1.gather", 1, "layer0.gather.out"), "the index is not constant"),
    ("cast to float", number("layer0.on", 1), "'to' has the value"),
    ("cast to nothing", number("layer0.on", None), "only the gates of channels are cast"),
    ("cast of the vector", wire("layer0.on", 0, "gates"), "only the gates of channels are cast"),
    ("cast of an image", wire("layer0.on", 0, "image"), "only the gates of channels are cast"),
    ("cast of a weight", wire("layer0.on", 0, "layer0.weight"), "only the gates of channels are cast"),
    ("cast twice", between("layer0.on", "Cast", to=TensorProto.BOOL), "only the gates of channels are cast"),
    ("axis 2", number("layer0.weight.pick", 2), "'axis' has the value"),
    ("axis below 0", number("layer0.weight.pick", -1), "'axis' has the value"),
    ("no axis", number("layer0.weight.pick", None), "axis None"),
    ("other axis", number("layer0.weight.pick", 1), "axis 1 of [64, 32, 3, 3] does not have 64 channels"),
    ("other axis of the second", number("layer0.back.pick", 0), "axis 0 of [32, 64, 1, 1] does not have 64"),
    ("axis of a bias", number("layer0.bias.pick", 1), "axis 1 of [64] does not have 64 channels"),
    ("condition is int64", wire("layer0.weight.pick", 1, "layer0.gather.out"), "the condition is not the gates"),
    ("condition is stored", wire("layer0.weight.pick", 1, "layer0.entries"), "the condition is not the gates"),
    ("condition is left out", wire("layer0.weight.pick", 1, ""), "the condition is not the gates"),
    (
        "condition tests a decision",
        beside("layer3.gather", "Compress", ["layer0.weight", "group_2_first.out"], axis=0),
        "the condition is not the gates",
    ),
    ("picked from an activation", wire("layer0.weight.pick", 0, "image"), "only a float32 initializer is compressed"),
    ("picked from indices", wire("layer0.bias.pick", 0, "layer0.entries"), "only a float32 initializer is compressed"),
    ("picked twice", between("layer0.weight.pick", "Compress", "layer0.on.out", axis=0), "gates switch channels of"),
    ("bias stays whole", wire("layer0.expand", 2, "layer0.bias"), "not compressed on axis 0 by the same gates"),
    ("weight stays whole", wire("layer0.expand", 1, "layer0.weight"), "not compressed on axis 0 by the same gates"),
    ("weight of another layer", wire("layer1.expand", 1, "layer0.weight.pick.out"), "not compressed on axis 0 by the"),
    ("bias of another layer", wire("layer1.expand", 2, "layer0.bias.pick.out"), "not compressed on axis 0 by the same"),
    ("second stays whole", wire("layer0.project", 1, "layer0.back"), "not compressed on axis 1 as the channels"),
    ("second of another layer", wire("layer1.project", 1, "layer0.back.pick.out"), "not compressed on axis 1 as the"),
    ("second by another layer", wire("layer1.back.pick", 1, "layer0.on.out"), "not compressed on axis 1 as the"),
    ("second alone", wire("layer0.project", 0, "layer0.extra"), "which nothing before it makes"),
    ("bias of the second", lambda m: node(m, "layer0.project").input.append("layer0.bias.pick.out"), "of shape [32]"),
    ("depthwise", depthwise, "a grouped convolution cannot have channels that gates switch"),
    (
        "grouped",
        lambda m: node(m, "layer0.expand").attribute.add(name="group", i=2, type=2) and None,
        "does not fit 32",
    ),
    ("normalised", between("layer0.expand", "BatchNormalization", *["layer2.bias"] * 4), "gates switch channels of"),
    ("pooled", between("layer0.act", "MaxPool", kernel_shape=[1, 1]), "gates switch channels of"),
    ("summed", between("layer0.act", "Add", "layer0.act.out"), "gates switch channels of"),
    ("multiplied", between("layer0.act", "Mul", "clip_0"), "which nothing before"),
    ("joined", between("layer0.act", "Concat", axis=1), "gates switch channels of"),
    ("averaged", beside("layer0.project", "GlobalAveragePool", ["layer0.act.out"]), "gates switch channels of"),
    ("flattened", beside("layer0.project", "Flatten", ["layer0.act.out"], axis=1), "gates switch channels of"),
    ("a weight activated", between("layer0.weight.pick", "Relu"), "not float32 with the batch first"),
    (
        "a weight added",
        beside("layer0.project", "Add", ["stem.act.out", "layer0.bias.pick.out"]),
        "gates switch channels",
    ),
    ("a bound", beside("layer0.project", "Clip", ["stem.act.out", "layer0.bias.pick.out"]), "the bound is not"),
    ("in a branch", in_a_branch, "in the outermost graph only"),
    ("picked in a branch", picked_in_a_branch, "in the outermost graph only"),
]


@pytest.mark.parametrize(("edit", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused_with_the_reason(bundle: Bundle, edit: Edit, message: str) -> None:
    with pytest.raises(BundleError) as caught:
        check_graph(edited(bundle, edit))
    text = str(caught.value)
    assert message in text
    assert text.isprintable()


@pytest.mark.parametrize("kind", ["choice", "experts"])
def test_only_groups_of_modules_switch_channels(bundle: Bundle, kind: Any) -> None:
    manifest, first = bundle.manifest, bundle.manifest.space.groups[0]
    changed = GateSpace((GateGroup(first.name, kind, first.labels), *manifest.space.groups[1:]))
    other = replace(bundle, manifest=replace(manifest, space=changed))
    with pytest.raises(BundleError, match="its inputs are" if kind == "choice" else "compresses by the entries"):
        check_graph(other)


def test_switched_channels_are_no_output(bundle: Bundle) -> None:
    def edit(model: onnx.ModelProto) -> None:
        output = helper.make_tensor_value_info("layer0.act.out", TensorProto.FLOAT, ["N", 64, 8, 8])
        model.graph.output.append(output)

    spec = TensorSpec("layer0.act.out", "float32", (None, 64, 8, 8))
    manifest = replace(bundle.manifest, outputs=(*bundle.manifest.outputs, spec))
    with pytest.raises(BundleError, match="but no node makes that"):
        check_graph(edited(replace(bundle, manifest=manifest), edit))


def test_modules_that_switch_nothing_are_named(bundle: Bundle) -> None:
    def edit(model: onnx.ModelProto) -> None:  # layer1 is switched by the modules of layer0
        wire("layer1.on", 0, "layer0.gather.out")(model)

    with pytest.raises(BundleError, match=r"no decision tests the entries \[8, 9, 10, 11, 12, 13, 14, 15\]"):
        check_graph(edited(bundle, edit))


@pytest.mark.parametrize("limit", ["MAX_SWITCHED_CHANNELS", "MAX_SWITCHED_WEIGHTS"])
def test_as_many_channels_as_can_be_looked_at(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(check, limit, 3)
    with pytest.raises(BundleError, match="gates switch more than"):
        check_graph(bundle)


@pytest.mark.parametrize("op", ["Relu", "Sigmoid", "HardSigmoid", "HardSwish", "Identity"])
def test_activations_may_stand_between_the_two_convolutions(bundle: Bundle, op: str) -> None:
    other = edited(bundle, lambda model: setattr(node(model, "layer0.act"), "op_type", op))
    session = open_session(other)
    gates = other.manifest.space.parse("b00000001-b10000000-3-b00010000-b10000001-b11111110")
    assert session.run(random_inputs(session.inputs, seed=0, batch=2), gates)["logits"].shape == (2, 1000)
    session.close()


def test_modules_of_unequal_size_in_any_order_pass(bundle: Bundle) -> None:
    order = np.random.default_rng(0).permutation([0] * 57 + [1, 2, 3, 4, 5, 6, 7])
    session = open_session(edited(bundle, entries(order)))
    gates = bundle.manifest.space.parse("b00000001-b10000000-0-b00010000-b10000001-b11111110")
    assert np.isfinite(session.run(random_inputs(session.inputs, seed=0), gates)["logits"]).all()
    session.close()


def test_a_layer_needs_neither_bias_nor_normalisation(tmp_path: Path) -> None:
    net = supernets().Net(8, 0)
    x = net.relu(net.conv("image", "stem", 3, 16, 3, 2), "stem.act")
    plain = net.bundle("plain", net.relu(net.modules(x, "layer0", 16, 16, 1), "out"), 16, tmp_path / "b.nnf", 0)

    def bare(model: onnx.ModelProto) -> None:
        node(model, "layer0.expand").input.pop()
        norm = node(model, "layer0.project.bn")
        node(model, "out").input[0] = norm.input[0]
        model.graph.node.remove(norm)

    session = open_session(edited(plain, bare))
    full, less = (
        session.run(random_inputs(session.inputs, seed=0), plain.manifest.space.parse(t)) for t in ("full", "b10000000")
    )
    assert np.abs(full["logits"] - less["logits"]).max() > 1e-3
    session.close()

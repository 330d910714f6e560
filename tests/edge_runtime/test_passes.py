"""The rewrites of a dumped graph, on dumps that onnxruntime really makes and on graphs that it would not make."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edge_runtime.backends import export_subnet
from edge_runtime.backends.onnx.passes import (
    inline_gates,
    keep_blocked,
    make_names_unique,
    move_tensors_in,
    value_shapes,
)
from edge_runtime.backends.onnx.passes.activations import Activation, Activations
from edge_runtime.backends.onnx.passes.conversions import NCHWC_DOMAIN
from edge_runtime.backends.onnx.passes.names import branches_of, graphs_of
from edge_runtime.backends.onnx.session import create_dump, create_native, create_prepared
from edge_runtime.errors import BackendError
from tests.support.dumps import OPTIONS, Dump, image, nodes_of, operators, settled
from tests.support.tiny import SPACE, tiny_reference


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Dump:
    return Dump(tmp_path_factory.mktemp("dump"))


def test_every_name_is_there_once(dump: Dump) -> None:
    made = [name for node in nodes_of(dump.model().graph) for name in node.output]
    assert len(made) == len(set(made))


def test_names_of_decisions_inputs_and_outputs_stay(dump: Dump) -> None:
    model = dump.model()
    assert [value.name for value in model.graph.input] == ["image", "gates"]
    assert [value.name for value in model.graph.output] == ["logits"]
    assert {"group_0", "group_1", "group_2", "window_1"} <= {node.name for node in nodes_of(model.graph)}


@pytest.mark.parametrize("batch", [1, 3])
def test_the_crossing_form_answers_as_an_independent_model(dump: Dump, batch: int) -> None:
    session = dump.session(dump.crossed()[0])
    for gates in SPACE.enumerate():
        (logits,) = session.run(None, {"image": image(batch), "gates": np.array(gates.vector(), np.int64)})
        np.testing.assert_allclose(logits, tiny_reference(gates, image(batch)), rtol=1e-3, atol=1e-4)


def test_no_conversion_is_left_at_a_boundary_where_the_layout_exists(dump: Dump, tmp_path: Path) -> None:
    before, (model, report) = operators(dump.model()), dump.crossed()
    if not before[f"{NCHWC_DOMAIN}.Conv"]:
        pytest.skip("this processor has no blocked layout")
    assert conversions(dump.model()) > 10
    assert operators(model)[".Add"] == 0, "a residual sum is a part of its convolution"
    assert report.folded >= before[".Add"]
    for gates in SPACE.enumerate():
        # How many a subnet needs for itself depends on the processor: blocks are of 8 channels or of 16.
        create_native(export_subnet(dump.bundle, gates), b"", OPTIONS, dump_to=tmp_path / "alone.onnx")
        alone = onnx.load(str(tmp_path / "alone.onnx"))
        assert conversions(inline_gates(model, settled(gates.vector()))) <= conversions(alone), gates


def test_every_tensor_lies_in_the_innermost_graph_that_alone_reads_it(dump: Dump) -> None:
    model = dump.crossed()[0]
    before = {tensor.name for graph in graphs_of(model.graph) for tensor in graph.initializer}
    move_tensors_in(model.graph)
    placed = [tensor.name for graph in graphs_of(model.graph) for tensor in graph.initializer]
    assert sorted(placed) == sorted(before)
    for graph in graphs_of(model.graph):
        direct = {name for each in graph.node for name in each.input} | {value.name for value in graph.output}
        below = [
            {name for inner in graphs_of(branch) for each in inner.node for name in each.input}
            for each in graph.node
            for branch in branches_of(each)
        ]
        for tensor in graph.initializer:
            assert tensor.name in direct or sum(tensor.name in names for names in below) != 1
    session = dump.session(model)
    for gates in SPACE.enumerate():
        (logits,) = session.run(None, {"image": image(2), "gates": np.array(gates.vector(), np.int64)})
        np.testing.assert_allclose(logits, tiny_reference(gates, image(2)), rtol=1e-3, atol=1e-4)
        inlined = inline_gates(model, settled(gates.vector()))
        (alone,) = dump.session(inlined).run(None, {"image": image(2)})
        np.testing.assert_array_equal(alone, logits)


def conversions(model: Any) -> int:
    return sum(count for name, count in operators(model).items() if "Reorder" in name)


@pytest.mark.parametrize("crossed", [True, False])
def test_an_inlined_subnet_has_no_decision_and_the_same_answer(dump: Dump, crossed: bool) -> None:
    model = dump.crossed()[0] if crossed else dump.model()
    untouched = model.SerializeToString()
    for gates in SPACE.enumerate():
        inlined = inline_gates(model, settled(gates.vector()))
        assert not {"If", "Equal", "Less", "Identity"} & {node.op_type for node in inlined.graph.node}
        assert [value.name for value in inlined.graph.input] == ["image"]
        (logits,) = dump.session(inlined).run(None, {"image": image(2)})
        np.testing.assert_allclose(logits, tiny_reference(gates, image(2)), rtol=1e-3, atol=1e-4)
    assert model.SerializeToString() == untouched


def test_an_inlined_subnet_refers_to_its_own_weights_only(dump: Dump) -> None:
    model = dump.crossed()[0]
    whole = {tensor.name for tensor in inline_gates(model, settled(SPACE.default.vector())).graph.initializer}
    skipped = {tensor.name for tensor in inline_gates(model, settled((2, 2, 2))).graph.initializer}
    assert skipped < whole


def test_the_foreground_gets_the_interpreter_between_nodes(dump: Dump) -> None:
    turns: list[int] = []
    inline_gates(dump.crossed()[0], settled(SPACE.default.vector()), pause=lambda: turns.append(1))
    assert len(turns) > 10


def test_a_decision_that_the_gates_do_not_settle_is_refused() -> None:
    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "b", [], [info("y", [1])])
    graph = helper.make_graph(
        [helper.make_node("If", ["unknown"], ["out"], "who_knows", then_branch=branch, else_branch=branch)],
        "g",
        [info("x", [1]), helper.make_tensor_value_info("unknown", TensorProto.BOOL, [])],
        [info("out", [1])],
    )
    with pytest.raises(BackendError, match="who_knows"):
        inline_gates(helper.make_model(graph), settled((0,)))


def info(name: str, shape: list[int | str]) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def blocked_graph(tail: list[Any], tail_output: str) -> Any:
    """image -> blocked Conv -> plain value `h`, then `tail`, in the form of a dump: 16 channels, 8 x 8."""
    weight = np.random.default_rng(1).standard_normal((16, 16, 1, 1)).astype(np.float32)
    packed = weight.reshape(16, 16).T.reshape(1, 1, 1, 1, 16, 16)  # OIhw16i16o with a block of 16
    conv = helper.make_node(
        "Conv", ["x_blocked", "w"], ["h_blocked"], "conv", domain=NCHWC_DOMAIN, kernel_shape=[1, 1], group=1
    )
    nodes = [
        helper.make_node("ReorderInput", ["x"], ["x_blocked"], "in", domain=NCHWC_DOMAIN),
        conv,
        helper.make_node("ReorderOutput", ["h_blocked"], ["h"], "out", domain=NCHWC_DOMAIN, channels=16),
        *tail,
    ]
    tensors = [onnx.numpy_helper.from_array(packed.reshape(16, 16, 1, 1), "w")]
    graph = helper.make_graph(nodes, "g", [info("x", [1, 16, 8, 8])], [info(tail_output, None)], tensors)  # type: ignore[arg-type]
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(NCHWC_DOMAIN, 1)], ir_version=8
    )


SHAPES = {"x": (1, 16, 8, 8), "h": (1, 16, 8, 8), "y": (1, 16, 8, 8)}


@pytest.mark.parametrize(
    "tail",
    [
        pytest.param([helper.make_node("Relu", ["h"], ["y"])], id="activation"),
        pytest.param([helper.make_node("Softmax", ["h"], ["y"], axis=1)], id="an operator that needs the plain layout"),
        pytest.param(
            [helper.make_node("Relu", ["h"], ["r"]), helper.make_node("Add", ["h", "r"], ["y"])], id="read by two"
        ),
        pytest.param(
            [helper.make_node("GlobalAveragePool", ["h"], ["p"]), helper.make_node("Add", ["h", "p"], ["y"])],
            id="a sum that broadcasts",
        ),
        pytest.param([helper.make_node("Identity", ["h"], ["y"])], id="the output itself"),
    ],
)
def test_whatever_reads_a_blocked_value_reads_the_right_one(tail: list[Any]) -> None:
    model = blocked_graph(tail, "y")
    x = np.random.default_rng(2).standard_normal((1, 16, 8, 8)).astype(np.float32)
    try:
        wanted = create_prepared(model.SerializeToString(), OPTIONS).run(None, {"x": x})[0]
    except BackendError:
        pytest.skip("this processor has no blocked layout")
    keep_blocked(model, SHAPES)
    np.testing.assert_allclose(
        create_prepared(model.SerializeToString(), OPTIONS).run(None, {"x": x})[0], wanted, rtol=1e-5, atol=1e-5
    )


def test_a_graph_without_blocked_operators_stays_as_it_is(dump: Dump) -> None:
    model = onnx.load_from_string(dump.bundle.model_bytes)
    before = operators(model)
    report = keep_blocked(model, {})
    assert (report.dropped, report.added, report.folded) == (0, 0, 0)
    assert operators(model) == before


# Activations after a sum, and where a value crosses a boundary.


class Branched:
    """x -> Conv -> Relu -> If(gates[0]) of two branches -> Conv -> y, as onnxruntime dumps it; branches read `h`."""

    def __init__(self, first: list[Any], second: list[Any]) -> None:
        rng = np.random.default_rng(3)
        weights = {f"w{i}": rng.standard_normal((16, 16, 3, 3)).astype(np.float32) / 8 for i in range(6)}
        weights |= {"one": np.ones(16, np.float32), "some": rng.standard_normal(16).astype(np.float32) / 8}
        scalars = {"low": np.float32(0.1), "high": np.float32(0.6), "zero": np.int64(0)}
        branches = {
            f"{name}_branch": helper.make_graph(nodes, name, [], [info(nodes[-1].output[0], ["N", 16, 8, 8])])
            for name, nodes in (("then", first), ("else", second))
        }
        nodes = [
            helper.make_node("Gather", ["gates", "zero"], ["gate"], "gather", axis=0),
            helper.make_node("Equal", ["gate", "zero"], ["test"], "equal"),
            *conv("x", 0, "stem"),
            helper.make_node("Relu", ["stem"], ["h"], "stem_relu"),
            helper.make_node("If", ["test"], ["chosen"], "group_0", **branches),
            *conv("chosen", 1, "y"),
        ]
        inputs = [info("x", ["N", 16, 8, 8]), helper.make_tensor_value_info("gates", TensorProto.INT64, [1])]
        inputs += [info("bound", [])] if any("bound" in node.input for node in [*first, *second]) else []
        tensors = [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in {**weights, **scalars}.items()]
        graph = helper.make_graph(nodes, "g", inputs, [info("y", ["N", 16, 8, 8])], tensors)
        self.portable = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def crossed(self, folder: Path) -> tuple[Any, Any]:
        """The dump before and after the pass; skips where this processor has no blocked layout."""
        parts: Any = SimpleNamespace(model_bytes=self.portable.SerializeToString(), weights=b"")
        create_dump(parts, OPTIONS, folder / "raw.onnx", "tensors.bin", blocked=True)
        before, after = (onnx.load(str(folder / "raw.onnx"), load_external_data=False) for _ in range(2))
        if not operators(before)[f"{NCHWC_DOMAIN}.Conv"]:
            pytest.skip("this processor has no blocked layout")
        make_names_unique(after)
        keep_blocked(after, value_shapes(self.portable))
        return before, after

    def check(self, crossed: Any, folder: Path) -> None:
        """The same outputs as the portable graph, gated and inlined, on values that reach both bounds."""
        x = np.random.default_rng(4).standard_normal((2, 16, 8, 8)).astype(np.float32) * 2
        portable = create_native(self.portable.SerializeToString(), b"", OPTIONS)
        gated = create_prepared(crossed.SerializeToString(), OPTIONS, folder=folder)
        for gate in (0, 1):
            feeds = {"x": x, "gates": np.array([gate], np.int64), "bound": np.array(0.5, np.float32)}
            feeds = {value.name: feeds[value.name] for value in self.portable.graph.input}
            (wanted,) = portable.run(None, feeds)
            np.testing.assert_allclose(gated.run(None, feeds)[0], wanted, rtol=1e-4, atol=1e-4)
            alone = create_prepared(
                inline_gates(crossed, settled((gate,))).SerializeToString(), OPTIONS, folder=folder
            ).run(None, {name: value for name, value in feeds.items() if name != "gates"})
            np.testing.assert_allclose(alone[0], wanted, rtol=1e-4, atol=1e-4)


def conv(into: str, weight: int, out: str) -> list[Any]:
    """With a BatchNormalization: without one onnxruntime leaves a convolution whose weights are outside plain."""
    attributes: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    return [
        helper.make_node("Conv", [into, f"w{weight}"], [f"{out}.conv"], f"{out}.conv", **attributes),
        helper.make_node("BatchNormalization", [f"{out}.conv", "one", "some", "some", "one"], [out], f"{out}.bn"),
    ]


def node(operator: str, inputs: list[str], out: str) -> Any:
    return helper.make_node(operator, inputs, [out], out)


SKIP = [node("Identity", ["h"], "skipped")]
RESIDUAL = [*conv("h", 2, "inner"), node("Add", ["h", "inner"], "sum")]


def activations(model: Any) -> list[tuple[str, list[float]]]:
    """Activation and parameters of each blocked convolution that has one."""
    found = []
    for each in nodes_of(model.graph):
        named = {attribute.name: attribute for attribute in each.attribute}
        if "activation" in named:
            floats = named["activation_params"].floats if "activation_params" in named else []
            found.append((named["activation"].s.decode(), [round(value, 6) for value in floats]))
    return found


GREATEST = round(float(np.finfo(np.float32).max), 6)


@pytest.mark.parametrize(
    ("bounds", "parameters"),
    [
        (["low", "high"], [0.1, 0.6]),
        (["low"], [0.1, GREATEST]),
        (["", "high"], [-GREATEST, 0.6]),
        ([], [-GREATEST, GREATEST]),
    ],
)
def test_a_clip_after_a_residual_sum_is_part_of_its_convolution(
    tmp_path: Path, bounds: list[str], parameters: list[float]
) -> None:
    graph = Branched([*RESIDUAL, node("Clip", ["sum", *bounds], "clipped")], SKIP)
    _, crossed = graph.crossed(tmp_path)
    after = operators(crossed)
    assert (after[".Add"], after[".Clip"]) == (0, 0)
    assert ("Clip", parameters) in activations(crossed)
    graph.check(crossed, tmp_path)


@pytest.mark.parametrize(
    "tail",
    [
        [node("HardSwish", ["h1"], "out")],
        [node("HardSigmoid", ["h1"], "soft"), node("Mul", ["h1", "soft"], "out")],
        [node("Sigmoid", ["h1"], "soft"), node("Mul", ["h1", "soft"], "product"), node("Add", ["product", "h"], "out")],
    ],
)
def test_a_product_of_a_value_and_its_activation_keeps_the_form(tmp_path: Path, tail: list[Any]) -> None:
    """As in MobileNetV3: onnxruntime itself leaves both factors blocked."""
    graph = Branched([*conv("h", 2, "h1"), *tail], SKIP)
    _, crossed = graph.crossed(tmp_path)
    graph.check(crossed, tmp_path)


def test_a_clip_of_what_crosses_into_a_branch_stays_blocked(tmp_path: Path) -> None:
    graph = Branched([node("Clip", ["h", "low", "high"], "clipped")], SKIP)
    before, crossed = graph.crossed(tmp_path)
    after = operators(crossed)
    assert after[".Clip"] == 1, "the branch that skips reads the value as it was"
    assert after[f"{NCHWC_DOMAIN}.ReorderOutput"] == 1
    assert after[f"{NCHWC_DOMAIN}.ReorderOutput"] < operators(before)[f"{NCHWC_DOMAIN}.ReorderOutput"]
    graph.check(crossed, tmp_path)


@pytest.mark.parametrize(
    "tail",
    [
        pytest.param(
            [node("Clip", ["sum", "low", "high"], "clipped"), node("Add", ["sum", "clipped"], "both")],
            id="another reader of the sum",
        ),
        pytest.param(
            [node("Clip", ["sum", "low"], "positive"), node("Clip", ["positive", "", "high"], "clipped")],
            id="a convolution that has an activation",
        ),
        pytest.param([node("Clip", ["sum", "low", "bound"], "clipped")], id="a bound that is an input"),
        pytest.param([node("Clip", ["sum", "high", "low"], "clipped")], id="bounds out of order"),
    ],
)
def test_a_clip_that_cannot_be_folded_stays_blocked(tmp_path: Path, tail: list[Any]) -> None:
    graph = Branched([*RESIDUAL, *tail], SKIP)
    _, crossed = graph.crossed(tmp_path)
    after = operators(crossed)
    assert after[".Clip"] == 1
    assert after[f"{NCHWC_DOMAIN}.ReorderOutput"] == 1, "of the output alone"
    assert after[f"{NCHWC_DOMAIN}.ReorderInput"] <= 1
    graph.check(crossed, tmp_path)


def test_sums_and_clips_of_both_branches_and_of_a_nested_one(tmp_path: Path) -> None:
    inner = {
        "then_branch": helper.make_graph(
            [
                *conv("h", 3, "deep"),
                node("Add", ["deep", "h"], "deep_sum"),
                node("Clip", ["deep_sum", "low"], "deepest"),
            ],
            "deep_then",
            [],
            [info("deepest", ["N", 16, 8, 8])],
        ),
        "else_branch": helper.make_graph(
            [node("Identity", ["h"], "kept")], "deep_else", [], [info("kept", ["N", 16, 8, 8])]
        ),
    }
    nested = [helper.make_node("If", ["test"], ["nested"], "nested", **inner)]
    graph = Branched([*RESIDUAL, node("Clip", ["sum", "low", "high"], "clipped")], nested)
    _, crossed = graph.crossed(tmp_path)
    assert operators(crossed)[".Clip"] == operators(crossed)[".Add"] == 0
    assert [name for name, _ in activations(crossed)].count("Clip") == 2
    graph.check(crossed, tmp_path)


def test_a_clip_of_another_opset_is_left_alone() -> None:
    old = helper.make_node("Clip", ["h"], ["y"], min=0.0, max=6.0)
    assert Activations([]).of(old) is None
    assert Activations([]).of(node("Sigmoid", ["h"], "y")) is None
    assert Activations([]).of(node("Relu", ["h"], "y")) == Activation("Relu")


def test_bounds_that_are_no_single_float_inside_the_model_are_not_read() -> None:
    outside = TensorProto(name="outside", data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    several = onnx.numpy_helper.from_array(np.zeros(2, np.float32), "several")
    whole = onnx.numpy_helper.from_array(np.array(0), "whole")
    known = Activations([outside, several, whole, onnx.numpy_helper.from_array(np.array([0.5], np.float32), "one")])
    for name in ("outside", "several", "whole", "unknown"):
        assert known.of(node("Clip", ["h", name], "y")) is None
    found = known.of(node("Clip", ["h", "one"], "y"))
    assert found is not None
    assert found.parameters[0] == 0.5

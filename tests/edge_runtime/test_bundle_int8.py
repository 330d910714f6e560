"""What is in 8 bits in a bundle's graph: codes go where the rules say and nowhere else, hostile ones are refused."""

from __future__ import annotations

import bisect
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from edge_runtime.backends import check_graph
from edge_runtime.backends.onnx import check
from edge_runtime.backends.onnx.quantised import QUANTISED_RULES, computes_in_8_bits, tolerance_of
from edge_runtime.backends.onnx.values import Value
from edge_runtime.bundle import Bundle
from edge_runtime.errors import BundleError
from tests.edge_runtime.test_bundle_operators import IMAGE, ROW
from tests.support.tiny import tiny_bundle, tiny_parts

Nodes = list[tuple[str, list[Any], dict[str, Any]]]
SCALE, ZERO = np.array(0.5, np.float32), np.array(7, np.uint8)
CODE = ("QuantizeLinear", [IMAGE, SCALE, ZERO], {})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("tiny") / "tiny.nnf")


def with_nodes(bundle: Bundle, nodes: Nodes) -> Bundle:
    """The bundle with more nodes, which give ``v0``, ``v1``, ...; arrays among their inputs become initializers."""
    model = tiny_parts().model
    for number, (op, inputs, attributes) in enumerate(nodes):
        names = []
        for index, each in enumerate(inputs):
            if not isinstance(each, str):
                each, value = f"stored_{number}_{index}", each
                model.graph.initializer.append(numpy_helper.from_array(value, each))
            names.append(each)
        node = helper.make_node(op, names, [f"v{number}"], f"more_{number}", **attributes)
        model.graph.node.insert(len(model.graph.node) - 1, node)
    return replace(bundle, model_bytes=model.SerializeToString(deterministic=True))


def convolution(**other: Any) -> list[Any]:
    """Inputs of a QLinearConv of the codes ``v0``, 16 channels to 4."""
    inputs = {
        "codes": "v0",
        "scale": SCALE,
        "zero": ZERO,
        "weight": np.ones((4, 16, 3, 3), np.int8),
        "weight_scale": np.ones(4, np.float32),
        "weight_zero": np.array(0, np.int8),
        "out_scale": SCALE,
        "out_zero": ZERO,
        "bias": np.zeros(4, np.int32),
    }
    return list((inputs | other).values())


PADS = {"pads": [1, 1, 1, 1]}
AXIS = {"axis": 0}
VECTORS = [np.ones(16, np.int8), np.ones(16, np.float32)]
COLUMNS = [np.ones((16, 1, 1), np.int8), np.ones(16, np.float32)]
RESIZE = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
WEIGHT, WEIGHT_SCALE = np.ones((4, 16, 3, 3), np.int8), np.ones(4, np.float32)


def test_codes_go_from_layer_to_layer_and_back_to_float32(tiny: Bundle) -> None:
    deep = convolution(codes="v1", weight=np.ones((4, 1, 3, 3), np.int8))
    check_graph(
        with_nodes(
            tiny,
            [
                CODE,
                ("QLinearConv", convolution(), PADS),
                ("QLinearConv", deep, PADS | {"group": 4, "strides": [2, 2]}),
                ("DequantizeLinear", ["v2", SCALE, ZERO], {}),
                ("Relu", ["v3"], {}),
            ],
        )
    )


def test_codes_count_as_the_memory_that_they_take(tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def least_limit(bundle: Bundle) -> int:
        """The smallest limit of values over the whole graph with which it is not refused."""

        def is_refused(limit: int) -> bool:
            monkeypatch.setattr(check, "MAX_TOTAL_ELEMENTS", limit)
            try:
                check_graph(bundle)
            except BundleError as error:
                return "needs too much" in str(error)
            return False

        return bisect.bisect_left(range(10**6), True, key=lambda limit: not is_refused(limit))

    codes = 16 * 16 * 16
    assert least_limit(with_nodes(tiny, [CODE])) - least_limit(tiny) == codes // 4
    assert least_limit(with_nodes(tiny, [("Relu", [IMAGE], {})])) - least_limit(tiny) == codes


def test_a_weight_that_is_stored_in_8_bits_serves_as_a_weight(tiny: Bundle) -> None:
    nodes: Nodes = [("DequantizeLinear", [WEIGHT, WEIGHT_SCALE], {"axis": 0}), ("Conv", [IMAGE, "v0"], PADS)]
    check_graph(with_nodes(tiny, nodes))


@pytest.mark.parametrize(
    ("says", "nodes"),
    [
        ("finite number above 0", [("QuantizeLinear", [IMAGE, np.array(0, np.float32), ZERO], {})]),
        ("finite number above 0", [("QuantizeLinear", [IMAGE, np.array(-1, np.float32), ZERO], {})]),
        ("finite number above 0", [("QuantizeLinear", [IMAGE, np.array(np.nan, np.float32), ZERO], {})]),
        ("finite number above 0", [("QuantizeLinear", [IMAGE, np.array(np.inf, np.float32), ZERO], {})]),
        ("the scale is not", [("QuantizeLinear", [IMAGE, np.ones(16, np.float32), ZERO], {})]),
        ("the scale is not", [("QuantizeLinear", [IMAGE, IMAGE, ZERO], {})]),
        ("not one uint8 constant", [("QuantizeLinear", [IMAGE, SCALE, np.array(0, np.int8)], {})]),
        ("not one uint8 constant", [("QuantizeLinear", [IMAGE, SCALE, np.zeros(16, np.uint8)], {})]),
        ("not float32", [CODE, ("QuantizeLinear", ["v0", SCALE, ZERO], {})]),
        ("not float32", [CODE, ("Relu", ["v0"], {})]),
        ("not float32", [CODE, ("MaxPool", ["v0"], {"kernel_shape": [2, 2]})]),
        ("not float32", [CODE, ("Add", ["v0", "v0"], {})]),
        ("not float32", [CODE, ("Concat", ["v0", "v0"], {"axis": 1})]),
        ("not float32", [CODE, ("Conv", ["v0", "stem.weight"], {})]),
        ("not codes", [("DequantizeLinear", [IMAGE, SCALE, ZERO], {})]),
        ("not codes", [("DequantizeLinear", [np.zeros((1, 4, 4, 4), np.uint8), SCALE, ZERO], {})]),
        ("not codes", [("QuantizeLinear", [ROW, SCALE, ZERO], {}), ("DequantizeLinear", ["v0", SCALE, ZERO], {})]),
        ("without a zero only", [CODE, ("DequantizeLinear", ["v0", SCALE], {})]),
        ("without a zero only", [("DequantizeLinear", [WEIGHT, WEIGHT_SCALE], {})]),
        ("it resizes|scales is not", [("DequantizeLinear", VECTORS, AXIS), ("Resize", [IMAGE, "", "v0"], RESIZE)]),
        ("the parameter is not", [("DequantizeLinear", VECTORS, AXIS), ("BatchNormalization", [ROW, *["v0"] * 4], {})]),
        ("the slope is not", [("DequantizeLinear", COLUMNS, AXIS), ("PRelu", [IMAGE, "v0"], {})]),
        (
            "scale of the weight",
            [
                ("DequantizeLinear", [np.ones(4, np.int8), WEIGHT_SCALE], AXIS),
                ("DequantizeLinear", [WEIGHT, "v0"], AXIS),
            ],
        ),
        ("not float32", [("DequantizeLinear", [WEIGHT, WEIGHT_SCALE], AXIS), ("Relu", ["v0"], {})]),
        *(
            ("stored in 8 bits", [("DequantizeLinear", COLUMNS, AXIS), (operator, inputs, {})])
            for operator in ("Add", "Sub", "Mul", "Div")
            for inputs in (["v0", IMAGE], [IMAGE, "v0"], ["v0", "v0"])
        ),
        ("scale of the weight", [("DequantizeLinear", [WEIGHT, np.ones(3, np.float32)], {"axis": 0})]),
        ("'axis' has the value", [("DequantizeLinear", [WEIGHT, WEIGHT_SCALE], {"axis": 2})]),
        ("not codes", [CODE, ("QLinearConv", convolution(codes=IMAGE), PADS)]),
        ("not an int8 initializer", [CODE, ("QLinearConv", convolution(weight=WEIGHT.astype(np.uint8)), PADS)]),
        ("not an int8 initializer", [CODE, ("QLinearConv", convolution(weight=WEIGHT[0]), PADS)]),
        ("not an int8 initializer", [CODE, ("QLinearConv", convolution(weight="v0"), PADS)]),
        ("does not fit 16 channels", [CODE, ("QLinearConv", convolution(weight=WEIGHT[:, :3]), PADS)]),
        ("scale of the weight", [CODE, ("QLinearConv", convolution(weight_scale=np.ones(5, np.float32)), PADS)]),
        ("int8 constant 0", [CODE, ("QLinearConv", convolution(weight_zero=np.array(1, np.int8)), PADS)]),
        ("int8 constant 0", [CODE, ("QLinearConv", convolution(weight_zero=np.zeros(4, np.int8)), PADS)]),
        ("bias is not an int32", [CODE, ("QLinearConv", convolution(bias=np.zeros(4, np.float32)), PADS)]),
        ("bias is not an int32", [CODE, ("QLinearConv", convolution(bias=np.zeros(3, np.int32)), PADS)]),
        ("finite number above 0", [CODE, ("QLinearConv", convolution(out_scale=np.array(0, np.float32)), PADS)]),
        ("does not fit 16 pixels", [CODE, ("QLinearConv", convolution(), {"pads": [3, 0, 0, 0]})]),
        ("it has 8 inputs", [CODE, ("QLinearConv", convolution()[:-1], PADS)]),
        ("'auto_pad' is not allowed", [CODE, ("QLinearConv", convolution(), {"auto_pad": "SAME_UPPER"})]),
    ],
)
def test_a_hostile_one_is_refused_with_the_reason(tiny: Bundle, says: str, nodes: Nodes) -> None:
    with pytest.raises(BundleError) as caught:
        check_graph(with_nodes(tiny, nodes))
    assert any(each in str(caught.value) for each in says.split("|"))
    assert str(caught.value).isprintable()


def test_only_subnets_in_8_bits_may_differ_by_more_than_rounding() -> None:
    graph = tiny_parts().model.graph
    assert not computes_in_8_bits(graph)
    assert tolerance_of(graph, 1e-4) == 1e-4
    graph.node.append(helper.make_node("QLinearConv", [], ["y"]))
    assert computes_in_8_bits(graph)
    assert 1e-4 < tolerance_of(graph, 1e-4) <= 0.1


def test_a_convolution_of_codes_is_charged_as_any_other() -> None:
    work = QUANTISED_RULES["QLinearConv"].work
    assert work is not None
    codes, weight = Value("uint8", (None, 16, 8, 8)), Value("int8", (4, 16, 3, 3), stored=True)
    scale = Value("float32", (4,), stored=True)
    assert work({}, [codes, None, None, weight, scale], Value("uint8", (None, 4, 8, 8))) == 4 * 16 * 9 * 64

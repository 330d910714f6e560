"""The rules of single operators: hostile attributes, shapes and costs are refused, and what passes runs as worked out.

Each hostile node stands in a graph that passes without it.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from edge_runtime.backends import check_graph
from edge_runtime.backends.onnx import check
from edge_runtime.backends.onnx.shapes import RULES
from edge_runtime.backends.onnx.spatial import SPATIAL_RULES
from edge_runtime.backends.onnx.values import Value
from edge_runtime.bundle import Bundle
from edge_runtime.errors import BundleError
from tests.support.operators import agree
from tests.support.tiny import tiny_bundle, tiny_parts

IMAGE = "stem.out"  # [N, 16, 16, 16]
PIXEL = "pooled"  # [N, 16, 1, 1]
ROW = "features"  # [N, 16]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("tiny") / "tiny.nnf")


def integers(*values: int) -> Any:
    return np.array(values, np.int64)


def floats(*values: float) -> Any:
    return np.array(values, np.float32)


def ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def with_node(bundle: Bundle, op: str, inputs: list[Any], attributes: dict[str, Any]) -> Bundle:
    """The bundle with one more node; arrays among its inputs become initializers."""
    model = tiny_parts().model
    names = []
    for index, each in enumerate(inputs):
        if isinstance(each, np.ndarray):
            model.graph.initializer.append(numpy_helper.from_array(each, f"stored_{index}"))
        names.append(f"stored_{index}" if isinstance(each, np.ndarray) else each)
    node = helper.make_node(op, names, ["more"], "more", **attributes)
    model.graph.node.insert(len(model.graph.node) - 1, node)
    return replace(bundle, model_bytes=model.SerializeToString(deterministic=True))


def mode(kind: str = "nearest", coordinates: str = "asymmetric", **more: str) -> dict[str, Any]:
    nearest = {"nearest_mode": "floor"} if kind == "nearest" else {}
    return {"mode": kind, "coordinate_transformation_mode": coordinates, **nearest, **more}


ALLOWED: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Reshape", [IMAGE, integers(0, 4, 4, 16, 16)], {}),
    ("Transpose", [IMAGE], {"perm": [0, 2, 3, 1]}),
    ("Slice", [IMAGE, integers(0, 3), integers(16, 4), integers(2, 1), integers(2, 1)], {}),
    ("Pad", [IMAGE, integers(0, 1, 0, 2, 0, 0, 3, 0)], {}),
    ("Expand", [PIXEL, integers(1, 16, 5, 7)], {}),
    ("Concat", [IMAGE, IMAGE], {"axis": 1}),
    ("Resize", [IMAGE, "", floats(1, 1, 2, 0.5)], mode()),
    ("Resize", [IMAGE, "", floats(1, 1, 1.5, 2)], mode("linear", "half_pixel")),
    ("Softmax", [ROW], {"axis": 1}),
    ("LayerNormalization", [IMAGE, ones(16, 16), ones(16, 16)], {"axis": 2, "epsilon": 1e-5}),
    ("InstanceNormalization", [IMAGE, ones(16), ones(16)], {"epsilon": 1e-5}),
    ("BatchNormalization", [ROW, *[ones(16)] * 4], {}),
    ("PRelu", [IMAGE, ones(16, 1, 1)], {}),
    ("ReduceSum", [IMAGE, integers(2, 1)], {"keepdims": 0}),
    ("ReduceMax", [IMAGE], {"axes": [-1], "keepdims": 1}),
    ("MatMul", [IMAGE, ones(16, 3)], {}),
    ("LRN", [IMAGE], {"size": 5}),
    ("Elu", [IMAGE], {"alpha": 0.5}),
    ("Sub", [IMAGE, IMAGE], {}),
    ("Div", [IMAGE, ones(16, 1, 1)], {}),
]

REFUSED: list[tuple[str, str, list[Any], dict[str, Any], str]] = [
    # the batch is never written down, moved, cut, joined or reduced
    ("fixed batch", "Reshape", [IMAGE, integers(1, 4096)], {}, "not 0, which copies the batch"),
    ("inferred batch", "Reshape", [IMAGE, integers(-1, 4096)], {}, "not 0, which copies the batch"),
    ("batch alone", "Reshape", [IMAGE, integers(0)], {}, "not 0, which copies the batch"),
    ("batch moved", "Transpose", [IMAGE], {"perm": [1, 0, 2, 3]}, "with the batch first"),
    ("batch cut", "Slice", [IMAGE, *map(integers, (0, 1, 0, 1))], {}, "without the batch"),
    ("batch padded", "Pad", [IMAGE, integers(1, 0, 0, 0, 0, 0, 0, 0)], {}, "pads the batch"),
    ("batch expanded", "Expand", [PIXEL, integers(2, 16, 1, 1)], {}, "cannot be expanded"),
    ("batch joined", "Concat", [IMAGE, IMAGE], {"axis": 0}, "'axis' has the value"),
    ("batch resized", "Resize", [IMAGE, "", floats(2, 1, 1, 1)], mode(), "resizes the batch or the channels"),
    ("softmax of the batch", "Softmax", [ROW], {"axis": 0}, "'axis' has the value"),
    ("norm of the batch", "LayerNormalization", [ROW, ones(16)], {"axis": 0}, "'axis' has the value"),
    ("batch summed", "ReduceSum", [ROW, integers(0)], {}, "without the batch"),
    ("batch from behind", "ReduceSum", [ROW, integers(-2)], {}, "without the batch"),
    # sizes
    ("other number of elements", "Reshape", [IMAGE, integers(0, 4095)], {}, "cannot take the sizes"),
    ("size 0", "Reshape", [IMAGE, integers(0, 0, 16, 256)], {}, "not 0, which copies"),
    ("two inferred sizes", "Reshape", [IMAGE, integers(0, -1, -1)], {}, "not 0, which copies"),
    ("product that wraps", "Reshape", [IMAGE, integers(0, 2**62, 4, 4096)], {}, "cannot take the sizes"),
    ("seven dimensions", "Reshape", [IMAGE, integers(0, 1, 1, 1, 1, 1, 4096)], {}, "up to 5"),
    ("sizes in float", "Reshape", [IMAGE, floats(0, 4096)], {}, "sizes are not constants"),
    ("a matrix of sizes", "Reshape", [IMAGE, integers(0, 4096)[None]], {}, "sizes are not constants"),
    ("too many sizes to read", "Reshape", [IMAGE, np.ones(17, np.int64)], {}, "sizes are not constants"),
    ("sizes from the gates", "Reshape", [IMAGE, "gates"], {}, "sizes are not constants"),
    ("sizes left out", "Reshape", [IMAGE, ""], {}, "sizes are not constants"),
    ("zeros that copy nothing", "Reshape", [IMAGE, integers(0, 4096)], {"allowzero": 1}, "'allowzero' has the value"),
    ("reshaped weight", "Reshape", ["stem.weight", integers(0, 432)], {}, "not float32 with the batch first"),
    ("reshaped gates", "Reshape", ["gates", integers(0, 3)], {}, "not float32 with the batch first"),
    ("expanded to fewer", "Expand", [IMAGE, integers(1, 16, 8, 16)], {}, "cannot be expanded"),
    ("expanded rank", "Expand", [ROW, integers(1, 4, 16)], {}, "cannot be expanded"),
    ("expanded below 1", "Expand", [PIXEL, integers(1, 16, -1, 0)], {}, "cannot be expanded"),
    ("expanded bomb", "Expand", [PIXEL, integers(1, 16, 2**31, 2**31)], {}, "needs too much"),
    ("padding bomb", "Pad", [IMAGE, integers(0, 0, 2**14, 2**14, 0, 0, 2**14, 2**14)], {}, "needs too much"),
    ("negative padding", "Pad", [IMAGE, integers(0, 0, 0, 0, 0, 0, -1, 0)], {}, "not 0 to 16384"),
    ("padding past the end", "Pad", [IMAGE, integers(0, 0, 0, 0, 0, 0, 2**62, 0)], {}, "not 0 to 16384"),
    ("padding of fewer sides", "Pad", [IMAGE, integers(0, 0, 1, 0, 0, 1)], {}, "do not fit 4 dimensions"),
    ("padding by a vector", "Pad", [IMAGE, integers(*[0] * 8), floats(0, 0)], {}, "the value is not"),
    ("padding mode", "Pad", [IMAGE, integers(*[0] * 8)], {"mode": "reflect"}, "'mode' is not allowed"),
    # orders and bounds
    ("no order", "Transpose", [IMAGE], {}, "perm None"),
    ("an axis twice", "Transpose", [IMAGE], {"perm": [0, 1, 1, 3]}, "not an order"),
    ("fewer axes", "Transpose", [IMAGE], {"perm": [0, 1, 2]}, "not an order"),
    ("an axis that is not there", "Transpose", [IMAGE], {"perm": [0, 1, 2, 4]}, "not an order"),
    ("many axes", "Transpose", [IMAGE], {"perm": list(range(7))}, "'perm' has the value"),
    ("begin below 0", "Slice", [IMAGE, *map(integers, (-3, 16, 1, 1))], {}, "does not fit axis 1"),
    ("end behind", "Slice", [IMAGE, *map(integers, (0, 17, 1, 1))], {}, "does not fit axis 1"),
    ("end of all", "Slice", [IMAGE, *map(integers, (0, 2**63 - 1, 1, 1))], {}, "does not fit axis 1"),
    ("nothing left", "Slice", [IMAGE, *map(integers, (4, 4, 1, 1))], {}, "does not fit axis 1"),
    ("step 0", "Slice", [IMAGE, *map(integers, (0, 4, 1, 0))], {}, "does not fit axis 1"),
    ("backwards", "Slice", [IMAGE, *map(integers, (4, 0, 1, -1))], {}, "does not fit axis 1"),
    ("an axis from behind", "Slice", [IMAGE, *map(integers, (0, 4, -1, 1))], {}, "count from the front"),
    (
        "an axis sliced twice",
        "Slice",
        [IMAGE, *[integers(0, 1)] * 2, integers(2, 2), integers(1, 1)],
        {},
        "do not fit 4",
    ),
    (
        "more bounds than axes",
        "Slice",
        [IMAGE, integers(0, 1), integers(4, 4), integers(1), integers(1)],
        {},
        "as many",
    ),
    ("no steps", "Slice", [IMAGE, *map(integers, (0, 4, 1))], {}, "it has 4 inputs"),
    ("axes left out", "Slice", [IMAGE, integers(0), integers(4), "", integers(1)], {}, "not constants"),
    ("gates as bounds", "Slice", [IMAGE, "gates", integers(4), integers(1), integers(1)], {}, "not constants"),
    ("no axis to join at", "Concat", [IMAGE, IMAGE], {}, "no axis None"),
    ("axis 6", "Concat", [IMAGE, IMAGE], {"axis": 6}, "'axis' has the value"),
    ("joined with a weight", "Concat", [IMAGE, "stem.weight"], {"axis": 1}, "not float32 with the batch first"),
    # resizing
    ("no mode", "Resize", [IMAGE, "", floats(1, 1, 2, 2)], {}, "it resizes as (None"),
    ("cubic", "Resize", [IMAGE, "", floats(1, 1, 2, 2)], mode("cubic", "half_pixel"), "'mode' is not one of"),
    ("mode as number", "Resize", [IMAGE, "", floats(1, 1, 2, 2)], {"mode": 1}, "'mode' is not one of"),
    ("mode of bytes", "Resize", [IMAGE, "", floats(1, 1, 2, 2)], {"mode": b"near\xff"}, "'mode' is not one of"),
    ("other mix of modes", "Resize", [IMAGE, "", floats(1, 1, 2, 2)], mode("linear", "asymmetric"), "it resizes as"),
    ("coordinates", "Resize", [IMAGE, "", floats(1, 1, 2, 2)], mode(coordinates="tf_crop_and_resize"), "not one of"),
    (
        "antialiasing",
        "Resize",
        [IMAGE, "", floats(1, 1, 2, 2)],
        mode() | {"antialias": 1},
        "'antialias' is not allowed",
    ),
    ("sizes", "Resize", [IMAGE, "", "", integers(1, 16, 32, 32)], mode(), "it has 4 inputs"),
    ("region", "Resize", [IMAGE, ones(8), floats(1, 1, 2, 2)], mode(), "no region and scales"),
    ("no scales", "Resize", [IMAGE, "", ""], mode(), "the scales is not"),
    ("two scales", "Resize", [IMAGE, "", floats(2, 2)], mode(), "the scales is not"),
    ("scale 0", "Resize", [IMAGE, "", floats(1, 1, 0, 1)], mode(), "is not between"),
    ("negative scale", "Resize", [IMAGE, "", floats(1, 1, -2, 1)], mode(), "is not between"),
    ("huge scale", "Resize", [IMAGE, "", floats(1, 1, 1e30, 1)], mode(), "is not between"),
    ("scale that is no number", "Resize", [IMAGE, "", floats(1, 1, np.nan, 1)], mode(), "is not between"),
    ("endless scale", "Resize", [IMAGE, "", floats(1, 1, 1, np.inf)], mode(), "is not between"),
    ("down to nothing", "Resize", [IMAGE, "", floats(1, 1, 1 / 64, 1)], mode(), "not a clear number of pixels"),
    ("a row", "Resize", [ROW, "", floats(1, 1, 2, 2)], mode(), "not float32 [N, C, H, W]"),
    # parameters
    ("no axis for softmax", "Softmax", [ROW], {}, "no axis None"),
    ("axis behind the end", "Softmax", [ROW], {"axis": 2}, "no axis 2"),
    ("scale of another shape", "LayerNormalization", [IMAGE, ones(15)], {"axis": 3}, "the parameter is not"),
    ("scale that broadcasts", "LayerNormalization", [IMAGE, ones(1)], {"axis": 3}, "the parameter is not"),
    ("computed scale", "LayerNormalization", [ROW, ROW], {"axis": 1}, "the parameter is not"),
    ("other arithmetic", "LayerNormalization", [ROW, ones(16)], {"axis": 1, "stash_type": 10}, "'stash_type' is not"),
    ("instance scale", "InstanceNormalization", [IMAGE, ones(15), ones(16)], {}, "the parameter is not"),
    ("instance without pixels", "InstanceNormalization", [ROW, ones(16), ones(16)], {}, "no pixels"),
    ("slopes", "PRelu", [IMAGE, ones(1, 16, 16)], {}, "the slope is not"),
    ("computed slopes", "PRelu", [IMAGE, IMAGE], {}, "the slope is not"),
    ("no axes", "ReduceSum", [IMAGE], {}, "it has 1 inputs"),
    ("axes left out", "ReduceSum", [IMAGE, ""], {}, "the axes are not constants"),
    ("an axis reduced twice", "ReduceSum", [IMAGE, integers(1, -3)], {}, "do not fit 4 dimensions"),
    ("nothing reduced", "ReduceSum", [IMAGE, integers(1)], {"noop_with_empty_axes": 1}, "'noop_with_empty_axes'"),
    ("every axis", "ReduceMax", [IMAGE], {"keepdims": 0}, "do not fit 4 dimensions"),
    ("all but the batch", "ReduceMax", [IMAGE], {"axes": [1, 2, 3], "keepdims": 0}, "the batch first"),
    ("dynamic product", "MatMul", [IMAGE, IMAGE], {}, "is not a matrix"),
    ("rows times rows", "MatMul", [ROW, ROW], {}, "the weight is not"),
    ("matrix of other rows", "MatMul", [IMAGE, ones(15, 3)], {}, "does not fit 16 features"),
    ("even window", "LRN", [IMAGE], {"size": 4}, "not an odd number of channels"),
    ("no window", "LRN", [IMAGE], {}, "not an odd number of channels"),
    ("huge window", "LRN", [IMAGE], {"size": 2**31 + 1}, "'size' has the value"),
    ("alpha that is no number", "Elu", [IMAGE], {"alpha": float("nan")}, "'alpha' has the value"),
    ("slope that is endless", "LeakyRelu", [IMAGE], {"alpha": float("inf")}, "'alpha' has the value"),
    ("shapes that do not fit", "Sub", [IMAGE, ones(15, 1, 1)], {}, "do not fit"),
    ("whole numbers", "Div", [IMAGE, integers(1)], {}, "not float32"),
    ("weights alone", "Div", ["stem.scale", "stem.var"], {}, "with the batch first"),
    ("a sum that makes rank", "Add", [ROW, ones(16, 1, 1)], {}, "with the batch first|beside another"),
]


class TestOperators:
    @pytest.mark.parametrize(("op", "inputs", "attributes"), ALLOWED, ids=[row[0] for row in ALLOWED])
    def test_one_in_range_passes(self, tiny: Bundle, op: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
        check_graph(with_node(tiny, op, inputs, attributes))

    @pytest.mark.parametrize(
        ("op", "inputs", "attributes", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
    )
    def test_a_hostile_one_is_refused_with_the_reason(
        self, tiny: Bundle, op: str, inputs: list[Any], attributes: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(BundleError) as caught:
            check_graph(with_node(tiny, op, inputs, attributes))
        text = str(caught.value)
        assert any(part in text for part in message.split("|"))
        assert text.isprintable()

    def test_every_operator_has_a_rule_that_refuses_a_gate_and_nothing(self, tiny: Bundle) -> None:
        for op, rule in RULES.items():
            for name in ("gate_0", "group_0.test", ""):
                with pytest.raises(BundleError, match="node 'more'"):
                    check_graph(with_node(tiny, op, [name] * rule.inputs[0], {}))

    def test_a_scale_that_rounds_to_two_sizes_is_refused(self) -> None:
        scale = float(np.float32(5 / 3))
        assert int(np.float32(3) * np.float32(scale)) == 5 != int(3 * scale)
        scales = Value("float32", (4,), constants=(1.0, 1.0, scale, 1.0), stored=True)
        attributes = {name: attribute.default for name, attribute in RULES["Resize"].attributes.items()} | mode()
        with pytest.raises(BundleError, match="not a clear number of pixels"):
            RULES["Resize"].infer(attributes, [Value("float32", (None, 1, 3, 3)), None, scales])

    def test_none_but_convolutions_and_activations_may_take_switched_channels(self) -> None:
        assert {op for op, rule in RULES.items() if rule.elastic} == {
            *("Clip", "Conv", "HardSigmoid", "HardSwish", "Identity", "Relu", "Sigmoid")
        }


class TestCosts:
    """Small nodes that take long are charged by what they do, not by what they give."""

    @pytest.mark.parametrize(
        ("op", "inputs", "attributes", "multiply_adds"),
        [
            ("MatMul", [IMAGE, ones(16, 3)], {}, 16 * 16 * 16 * 3),
            ("AveragePool", [IMAGE], {"kernel_shape": [16, 16]}, 16 * 256),
            ("LRN", [IMAGE], {"size": 63}, 63 * 4096),
            ("GlobalAveragePool", [IMAGE], {}, 4096),
            ("ReduceSum", [IMAGE, integers(1, 2, 3)], {}, 4096),
            ("Conv", [IMAGE, ones(1, 16, 16, 16)], {"kernel_shape": [16, 16]}, 4096),
        ],
    )
    def test_what_a_node_costs(
        self,
        tiny: Bundle,
        monkeypatch: pytest.MonkeyPatch,
        op: str,
        inputs: list[Any],
        attributes: Any,
        multiply_adds: int,
    ) -> None:
        def least(bundle: Bundle) -> int:
            """The least limit under which the graph passes."""
            low, high = 0, 2**24
            while low < high:
                middle = (low + high) // 2
                monkeypatch.setattr(check, "MAX_MULTIPLY_ADDS", middle)
                try:
                    check_graph(bundle)
                    high = middle
                except BundleError:
                    low = middle + 1
            return low

        added = least(with_node(tiny, op, inputs, attributes)) - least(tiny)
        assert multiply_adds <= added <= multiply_adds + 2 * 4096 + 4096


few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
small = st.integers(1, 6)
shapes = st.lists(small, min_size=1, max_size=4).map(tuple)


class TestShapesAgreeWithOnnxruntime:
    @few
    @given(st.permutations([2, 3, 4]), st.integers(1, 3))
    def test_reshape(self, sizes: list[int], split: int) -> None:
        agree("Reshape", [(2, 3, 4)], [integers(0, *sizes[:split], int(np.prod(sizes[split:])))], {})

    @few
    @given(shapes, st.randoms())
    def test_transpose(self, shape: tuple[int, ...], random: Any) -> None:
        order = list(range(1, len(shape) + 1))
        random.shuffle(order)
        agree("Transpose", [shape], [], {"perm": [0, *order]})

    @few
    @given(small, small, st.integers(-1, 6), st.integers(-1, 7), st.integers(1, 3), st.integers(1, 3))
    def test_slice(self, one: int, other: int, begin: int, end: int, axis: int, step: int) -> None:
        bounds = [integers(begin), integers(end), integers(axis), integers(step)]
        agree("Slice", [(one, other, 5)], bounds, {})

    @few
    @given(shapes, st.lists(st.integers(0, 3), min_size=10, max_size=10))
    def test_pad(self, shape: tuple[int, ...], sides: list[int]) -> None:
        rank = len(shape)
        agree("Pad", [shape], [integers(0, *sides[:rank], 0, *sides[rank : 2 * rank])], {})

    @few
    @given(st.lists(st.sampled_from([1, 1, 3]), min_size=1, max_size=4), st.lists(small, min_size=4, max_size=4))
    def test_expand(self, shape: list[int], sizes: list[int]) -> None:
        wanted = [size if have == 1 else have for have, size in zip(shape, sizes, strict=False)]
        agree("Expand", [tuple(shape)], [integers(1, *wanted)], {})

    @settings(few, max_examples=60)
    @given(st.integers(1, 33), st.integers(1, 33), st.integers(1, 66), st.integers(1, 66), st.integers(0, 2))
    def test_resize(self, height: int, width: int, high: int, wide: int, kind: int) -> None:
        scales = floats(1, 1, high / height, wide / width)
        modes = [mode(), mode("linear", "half_pixel"), mode("linear", "align_corners")]
        agree("Resize", [(2, height, width)], [None, scales], modes[kind])

    @few
    @given(shapes, st.integers(1, 4))
    def test_softmax_and_layer_norm(self, shape: tuple[int, ...], axis: int) -> None:
        agree("Softmax", [shape], [], {"axis": axis})
        agree("LayerNormalization", [shape], [ones(*shape[axis - 1 :])], {"axis": axis})

    @few
    @given(st.lists(st.integers(-4, 4), min_size=1, max_size=3), st.integers(0, 1))
    def test_reductions(self, axes: list[int], keepdims: int) -> None:
        agree("ReduceSum", [(2, 3, 4)], [integers(*axes)], {"keepdims": keepdims})
        agree("ReduceMax", [(2, 3, 4)], [], {"axes": axes, "keepdims": keepdims})

    @few
    @given(shapes, small)
    def test_matmul(self, shape: tuple[int, ...], out: int) -> None:
        agree("MatMul", [shape], [ones(shape[-1], out)], {})

    @few
    @given(st.lists(st.tuples(*[st.integers(1, 2)] * 4), min_size=1, max_size=3), st.integers(1, 5))
    def test_concat_of_five_dimensions(self, shapes: list[tuple[int, ...]], axis: int) -> None:
        agree("Concat", shapes, [], {"axis": axis})

    @pytest.mark.parametrize("op", ["Elu", "Erf", "Exp", "LeakyRelu", "Softplus", "Sqrt", "Tanh"])
    def test_single_elements(self, op: str) -> None:
        agree(op, [(2, 3, 4)], [], {})

    @pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 4, 5), (3, 1, 2, 2)])
    def test_norms_and_slopes(self, shape: tuple[int, ...]) -> None:
        agree("BatchNormalization", [shape], [ones(3)] * 4, {})
        agree("PRelu", [shape], [ones(3, *[1] * (len(shape) - 1))], {})
        if len(shape) > 1:
            agree("InstanceNormalization", [shape], [ones(3)] * 2, {})

    def test_local_response(self) -> None:
        agree("LRN", [(5, 3, 4)], [], {"size": 3})

    @pytest.mark.parametrize("op", ["Sub", "Div"])
    def test_arithmetic(self, op: str) -> None:
        agree(op, [(3, 2, 2)], [ones(3, 1, 1)], {})


def test_what_a_window_of_channels_keeps_beside_the_result_is_bounded() -> None:
    """onnxruntime pads the channels by the window: 63 of one channel are 63 times the image."""
    rule = SPATIAL_RULES["LRN"]
    with pytest.raises(BundleError, match="more than 67108864 elements"):
        rule.infer({"size": 63}, [Value("float32", (None, 1, 2048, 2048))])
    assert rule.infer({"size": 63}, [Value("float32", (None, 1, 512, 512))]).shape == (None, 1, 512, 512)

"""The graph check: what the exporter writes passes, everything beside it is refused with the reason.

Our shape inference is held against onnxruntime on random operators: what it lets through must run, with the shape that
it worked out.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edge_runtime.backends import check_graph, open_session
from edge_runtime.backends.onnx import check
from edge_runtime.bundle import Bundle, TensorSpec
from edge_runtime.errors import BundleError
from tests.support.mutate import all_graphs
from tests.support.operators import agree
from tests.support.tiny import tiny_bundle, tiny_parts, tiny_reference

Edit = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("tiny") / "tiny.nnf")


def edited(bundle: Bundle, edit: Edit) -> Bundle:
    model = tiny_parts().model
    edit(model)
    return replace(bundle, model_bytes=model.SerializeToString(deterministic=True))


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for graph in all_graphs(model.graph) for n in graph.node if n.name == name)


def graph(model: onnx.ModelProto, name: str) -> onnx.GraphProto:
    return next(g for g in all_graphs(model.graph) if g.name == name)


def tensor(model: onnx.ModelProto, name: str) -> TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def attribute(model: onnx.ModelProto, name: str, key: str, value: Any) -> None:
    target = node(model, name)
    kept = [a for a in target.attribute if a.name != key]
    del target.attribute[:]
    target.attribute.extend(kept)
    target.attribute.append(helper.make_attribute(key, value))


def constant(model: onnx.ModelProto, name: str, value: int) -> None:
    tensor(model, name).raw_data = np.array(value, np.int64).tobytes()


def place(model: onnx.ModelProto, key: str, value: str) -> None:
    next(entry for entry in tensor(model, "stem.weight").external_data if entry.key == key).value = value


def dims(model: onnx.ModelProto, name: str, *sizes: int) -> None:
    target = tensor(model, name)
    del target.dims[:]
    target.dims.extend(sizes)


class TestAccepted:
    @pytest.mark.parametrize("size", [16, 32])
    def test_every_subnet_of_the_exporters_form_gives_its_reference(self, tmp_path: Path, size: int) -> None:
        bundle = tiny_bundle(tmp_path / "b", size=size)
        session = open_session(bundle)
        images = np.random.default_rng(3).standard_normal((2, 3, size, size)).astype(np.float32)
        for gates in bundle.manifest.space.enumerate():
            found = session.run({"image": images}, gates)["logits"]
            np.testing.assert_allclose(found, tiny_reference(gates, images), atol=1e-4)
        session.close()

    def test_a_gate_may_be_gathered_as_a_vector_and_squeezed(self, tiny: Bundle) -> None:
        def edit(model: onnx.ModelProto) -> None:
            dims(model, "const_0", 1)
            node(model, "gather_0").output[0] = "gate_0_vector"
            squeeze = helper.make_node("Squeeze", ["gate_0_vector", "const_0"], ["gate_0"], "squeeze")
            model.graph.node.insert(1, squeeze)
            model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "zero"))
            for name in ("group_0.equal", "group_1.equal", "group_2.equal"):
                node(model, name).input[1] = "zero"

        bundle = edited(tiny, edit)
        session = open_session(bundle)
        images = np.ones((1, 3, 16, 16), np.float32)
        gates = bundle.manifest.space.parse("1-3-0")
        np.testing.assert_allclose(
            session.run({"image": images}, gates)["logits"], tiny_reference(gates, images), atol=1e-4
        )

    def test_a_passing_graph_is_not_changed_by_the_check(self, tiny: Bundle) -> None:
        before = tiny.model_bytes
        check_graph(tiny)
        assert tiny.model_bytes == before == tiny_parts().model.SerializeToString(deterministic=True)


REFUSED: list[tuple[str, Edit, str]] = [
    ("ir version", lambda m: setattr(m, "ir_version", 9), "IR version 9"),
    ("opset", lambda m: setattr(m.opset_import[0], "version", 18), "opsets"),
    ("second opset", lambda m: m.opset_import.add(domain="com.microsoft", version=1) and None, "opsets"),
    ("no opset", lambda m: m.ClearField("opset_import"), "opsets"),
    ("no graph", lambda m: m.ClearField("graph"), "no input"),
    ("metadata", lambda m: m.metadata_props.add(key="a", value="b") and None, "ModelProto.metadata_props"),
    ("shape notes", lambda m: m.graph.value_info.add(name="x") and None, "GraphProto.value_info"),
    ("domain", lambda m: setattr(node(m, "pool"), "domain", "com.microsoft"), "default domain"),
    ("operator", lambda m: setattr(node(m, "pool"), "op_type", "Loop"), "operator is not allowed"),
    ("operator name", lambda m: setattr(node(m, "pool"), "op_type", "\x1b[31m"), "operator is not allowed"),
    ("node name twice", lambda m: setattr(node(m, "pool"), "name", "head"), "two nodes are named"),
    ("no node name", lambda m: setattr(node(m, "pool"), "name", ""), "a node named ''"),
    ("two outputs", lambda m: node(m, "pool").output.append("more"), "one output"),
    ("value twice", lambda m: node(m, "pool").output.__setitem__(0, "h0"), "two values are named 'h0'"),
    ("name of a tensor", lambda m: node(m, "pool").output.__setitem__(0, "head.bias"), "two values are named"),
    ("name in a branch", lambda m: graph(m, "unit0.skip").node[0].output.__setitem__(0, "h1"), "no node of it makes"),
    ("unknown value", lambda m: node(m, "pool").input.__setitem__(0, "nowhere"), "'nowhere', which nothing before"),
    ("later value", lambda m: node(m, "stem.relu").input.__setitem__(0, "h2"), "'h2', which nothing before"),
    ("value of a branch", lambda m: node(m, "pool").input.__setitem__(0, "unit0.skip.out"), "which nothing before"),
    ("no input", lambda m: node(m, "pool").input.pop() and None, "it has 0 inputs"),
    ("left out", lambda m: node(m, "stem.conv").input.__setitem__(1, ""), "weight is not a float32 initializer"),
    ("another input", lambda m: node(m, "pool").input.append("h0"), "it has 2 inputs"),
    ("stride 0", lambda m: attribute(m, "stem.conv", "strides", [0, 1]), "'strides' has the value"),
    ("three strides", lambda m: attribute(m, "stem.conv", "strides", [1, 1, 1]), "'strides' has the value"),
    ("dilation", lambda m: attribute(m, "stem.conv", "dilations", [2**31, 1]), "'dilations' has the value"),
    ("negative pad", lambda m: attribute(m, "stem.conv", "pads", [-1, 1, 1, 1]), "'pads' has the value"),
    ("pad of a window", lambda m: attribute(m, "stem.conv", "pads", [3, 1, 1, 1]), "does not fit 16 pixels"),
    ("pads missing", lambda m: attribute(m, "stem.conv", "pads", [0, 0, 0, 0]), "node 'group_0'"),
    ("kernel", lambda m: attribute(m, "stem.conv", "kernel_shape", [1, 1]), "does not fit the weight"),
    ("group", lambda m: attribute(m, "stem.conv", "group", 3), "does not fit 3 channels"),
    ("group 0", lambda m: attribute(m, "stem.conv", "group", 0), "'group' has the value"),
    ("auto_pad", lambda m: attribute(m, "stem.conv", "auto_pad", "SAME_UPPER"), "'auto_pad' is not allowed"),
    ("type of group", lambda m: attribute(m, "stem.conv", "group", 1.0), "another type"),
    ("unknown attribute", lambda m: attribute(m, "stem.relu", "alpha", 1), "'alpha' is not allowed"),
    ("attribute twice", lambda m: node(m, "gather_0").attribute.add(name="axis", i=0, type=2) and None, "there twice"),
    ("training", lambda m: attribute(m, "stem.bn", "training_mode", 1), "'training_mode' has the value"),
    ("epsilon", lambda m: attribute(m, "stem.bn", "epsilon", float("nan")), "'epsilon' has the value"),
    ("weight is not stored", lambda m: node(m, "stem.bn").input.__setitem__(1, "stem.conv"), "the parameter is not"),
    ("transposed head", lambda m: attribute(m, "head", "transB", 0), "does not fit 16 features"),
    ("too many dims", lambda m: dims(m, "stem.weight", 16, 3, 3, 3, 1), "shape (16, 3, 3, 3, 1)"),
    ("negative dim", lambda m: dims(m, "stem.weight", -16, 3, 3, 3), "is not allowed"),
    ("zero dim", lambda m: dims(m, "stem.scale", 0), "is not allowed"),
    ("2^63 elements", lambda m: dims(m, "stem.weight", 2**62, 2, 2, 2), "is not allowed"),
    ("dims and bytes", lambda m: dims(m, "stem.weight", 16, 3, 3, 4), "has 1728 bytes, not 2304"),
    ("inline bytes", lambda m: setattr(tensor(m, "stem.scale"), "raw_data", b"1234"), "has 4 bytes, not 64"),
    ("no data", lambda m: tensor(m, "stem.scale").ClearField("raw_data"), "in exactly one place"),
    ("both places", lambda m: setattr(tensor(m, "stem.weight"), "raw_data", b""), "in exactly one place"),
    ("double", lambda m: setattr(tensor(m, "stem.weight"), "data_type", TensorProto.DOUBLE), "data type 11"),
    ("typed data", lambda m: tensor(m, "stem.scale").float_data.append(1.0), "TensorProto.float_data"),
    ("negative offset", lambda m: place(m, "offset", "-4"), "not a plain number"),
    ("offset in words", lambda m: place(m, "offset", "0x10"), "not a plain number"),
    ("fullwidth offset", lambda m: place(m, "offset", "\uff14"), "not a plain number"),
    ("behind the end", lambda m: place(m, "offset", "92164"), "lies at 92164+1728 of 93888 bytes"),
    ("huge length", lambda m: place(m, "length", "9" * 30), "not a plain number"),
    ("unaligned", lambda m: place(m, "offset", "2"), "not aligned"),
    ("other length", lambda m: place(m, "length", "4"), "has 4 bytes, not 1728"),
    ("gate index", lambda m: node(m, "gather_0").input.__setitem__(1, "const_3"), "has no entry 3"),
    ("gate index below 0", lambda m: constant(m, "const_0", -1), "has no entry -1"),
    ("gathered weights", lambda m: node(m, "gather_0").input.__setitem__(0, "const_3"), "only the gate vector"),
    ("gate against gate", lambda m: node(m, "window_1.less").input.__setitem__(1, "gate_0"), "not one constant"),
    ("bound that no gate reaches", lambda m: constant(m, "const_3", 2**40), "compared with 1.09951e+12"),
    ("bound below 0", lambda m: constant(m, "const_3", -1), "compared with -1"),
    ("test of no gate", lambda m: node(m, "window_1.less").input.__setitem__(0, "const_0"), "not one gate"),
    ("condition", lambda m: node(m, "window_1").input.__setitem__(0, "gate_1"), "does not test a gate"),
    ("name of a decision", lambda m: setattr(node(m, "group_0"), "name", "decision"), "is named group_<i>"),
    ("another group's gate", lambda m: setattr(node(m, "group_0"), "name", "group_1x"), "is named group_<i>"),
    ("wrong gate", lambda m: node(m, "group_0.equal").input.__setitem__(0, "gate_2"), "is another group's"),
    ("group that is not there", lambda m: setattr(node(m, "group_0"), "name", "group_7"), "is another group's"),
    ("same branch twice", lambda m: setattr(node(m, "group_0").attribute[0], "name", "then_branch"), "then_branch"),
    ("branch output", lambda m: graph(m, "unit0.skip").output.add(name="more") and None, "one output"),
    ("branch input", lambda m: graph(m, "unit0.skip").input.add(name="more") and None, "no inputs"),
    ("outer value", lambda m: setattr(graph(m, "unit0.skip").output[0], "name", "stem.out"), "no node of it makes"),
    ("value given", lambda m: setattr(m.graph.output[0], "name", "features"), "the manifest says logits"),
    ("no output", lambda m: m.graph.output.pop() and None, "its outputs are"),
    ("input type", lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 11), "without a dtype"),
    ("input size", lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", 8), "its inputs"),
    ("fixed batch", lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 1), "no input has"),
    ("other batch", lambda m: setattr(m.graph.output[0].type.tensor_type.shape.dim[0], "dim_param", "M"), "neither"),
    ("third input", lambda m: m.graph.input.append(helper.make_tensor_value_info("x", 1, ["N"])), "its inputs are"),
]


class TestRefused:
    @pytest.mark.parametrize(("edit", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
    def test_with_the_reason(self, tiny: Bundle, edit: Edit, message: str) -> None:
        with pytest.raises(BundleError) as caught:
            check_graph(edited(tiny, edit))
        text = str(caught.value)
        assert message in text
        assert text.isprintable()

    def test_a_gate_that_nothing_tests(self, tiny: Bundle) -> None:
        manifest = tiny.manifest
        extra = replace(manifest.space.groups[0], name="unit9")
        space = replace(manifest.space, groups=(*manifest.space.groups, extra))
        bundle = replace(tiny, manifest=replace(manifest, space=space, prior=(*manifest.prior, (0.0, 0.0, 0.0))))
        with pytest.raises(BundleError, match="its inputs are"):
            check_graph(bundle)
        wide = edited(bundle, lambda m: setattr(m.graph.input[1].type.tensor_type.shape.dim[0], "dim_value", 4))
        with pytest.raises(BundleError, match=r"no decision tests the entries \[3\]"):
            check_graph(wide)

    def test_outputs_unlike_the_manifest(self, tiny: Bundle) -> None:
        manifest = tiny.manifest
        outputs = (*manifest.outputs, TensorSpec("features", "float32", (None, 16)))
        with pytest.raises(BundleError, match="the manifest says logits float32"):
            check_graph(replace(tiny, manifest=replace(manifest, outputs=outputs)))

    def test_a_second_vector_that_could_pass_for_the_gates(self, tiny: Bundle) -> None:
        manifest = tiny.manifest
        inputs = (*manifest.inputs, TensorSpec("other", "int64", (3,)))
        with pytest.raises(BundleError, match="besides the gates"):
            check_graph(replace(tiny, manifest=replace(manifest, inputs=inputs)))

    def test_decisions_nested_too_deep(self, tiny: Bundle) -> None:
        def edit(model: onnx.ModelProto) -> None:
            inner = graph(model, "unit0.skip")
            for depth in range(17):
                name = f"group_0_tree_{depth + 10}"
                branches = {}
                for side in ("then_branch", "else_branch"):
                    identity = helper.make_node("Identity", ["stem.out"], [f"{name}.{side}"], f"{name}.{side}")
                    output = helper.make_tensor_value_info(f"{name}.{side}", TensorProto.FLOAT, ["N", 16, 16, 16])
                    branches[side] = helper.make_graph([identity], f"{name}.{side}", [], [output])
                inner.node.insert(0, helper.make_node("If", ["group_0.test"], [f"{name}.out"], name, **branches))
                inner = next(a.g for a in inner.node[0].attribute if a.name == "then_branch")

        with pytest.raises(BundleError, match="nested more than 16 deep"):
            check_graph(edited(tiny, edit))

    @pytest.mark.parametrize(
        "data",
        [b"", b"\0", b"not a model", b"\x3a\xff\xff\xff\xff\x0f", b"\x0a" * 1000, b"\x80\x04\x95" + bytes(50)],
    )
    def test_bytes_that_are_no_model(self, tiny: Bundle, data: bytes) -> None:
        with pytest.raises(BundleError, match="refused"):
            check_graph(replace(tiny, model_bytes=data))

    def test_a_field_that_we_do_not_know(self, tiny: Bundle) -> None:
        unknown = b"\xfa\x3e\x03abc"  # field 1007, three bytes
        with pytest.raises(BundleError, match="unknown fields"):
            check_graph(replace(tiny, model_bytes=tiny.model_bytes + unknown))

    def test_a_second_encoding_of_the_same_graph(self, tiny: Bundle) -> None:
        # Protobuf parsers merge a field that comes twice; two parsers need not merge alike.
        again = onnx.ModelProto(ir_version=8).SerializeToString()
        with pytest.raises(BundleError, match="canonical encoding"):
            check_graph(replace(tiny, model_bytes=tiny.model_bytes + again))

    def test_text_that_is_not_utf8(self, tiny: Bundle) -> None:
        damaged = tiny.model_bytes.replace(b"pooled", b"pool\xff\xfe")
        with pytest.raises(BundleError, match="is not UTF-8"):
            check_graph(replace(tiny, model_bytes=damaged))

    @pytest.mark.parametrize("limit", ["MAX_MULTIPLY_ADDS", "MAX_TOTAL_ELEMENTS", "MAX_WEIGHT_USES"])
    def test_a_graph_that_needs_too_much(self, tiny: Bundle, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
        monkeypatch.setattr(check, limit, 10_000)
        with pytest.raises(BundleError, match="the graph needs too much"):
            check_graph(tiny)


few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
sides = st.tuples(st.integers(1, 9), st.integers(1, 9))
pairs = st.lists(st.integers(1, 3), min_size=2, max_size=2)
pads = st.lists(st.integers(0, 3), min_size=4, max_size=4)


class TestShapesAgreeWithOnnxruntime:
    @few
    @given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), sides, pairs, pairs, pairs, pads)
    def test_conv(
        self,
        group: int,
        inner: int,
        out: int,
        size: tuple[int, int],
        kernel: list[int],
        strides: list[int],
        dilations: list[int],
        pads: list[int],
    ) -> None:
        weight = np.ones((group * out, inner, *kernel), np.float32)
        attributes = {"group": group, "strides": strides, "dilations": dilations, "pads": pads, "kernel_shape": kernel}
        agree("Conv", [(group * inner, *size)], [weight, np.ones(group * out, np.float32)], attributes)

    @few
    @given(st.sampled_from(["MaxPool", "AveragePool"]), sides, pairs, pairs, pads)
    def test_pool(self, op: str, size: tuple[int, int], kernel: list[int], strides: list[int], pads: list[int]) -> None:
        agree(op, [(2, *size)], [], {"kernel_shape": kernel, "strides": strides, "pads": pads})

    @few
    @given(st.lists(st.integers(-3, 3), min_size=1, max_size=3), st.integers(0, 1))
    def test_reduce_mean(self, axes: list[int], keepdims: int) -> None:
        agree("ReduceMean", [(2, 3, 4)], [], {"axes": axes, "keepdims": keepdims})

    @few
    @given(st.lists(st.integers(-4, 4), min_size=1, max_size=3))
    def test_squeeze(self, axes: list[int]) -> None:
        agree("Squeeze", [(3, 1, 1)], [np.array(axes, np.int64)], {})

    @few
    @given(st.sampled_from(["Add", "Mul"]), st.lists(st.sampled_from([1, 3]), max_size=4))
    def test_broadcast_with_a_stored_tensor(self, op: str, shape: list[int]) -> None:
        agree(op, [(3, 3, 3)], [np.ones(shape, np.float32)], {})

    @few
    @given(st.lists(st.integers(1, 2), min_size=1, max_size=3), st.lists(st.integers(1, 2), min_size=1, max_size=3))
    def test_broadcast_of_activations(self, left: list[int], right: list[int]) -> None:
        agree("Mul", [tuple(left), tuple(right)], [], {})

    @few
    @given(st.lists(st.tuples(*[st.integers(1, 2)] * 3), min_size=1, max_size=3), st.integers(1, 4))
    def test_concat(self, shapes: list[tuple[int, ...]], axis: int) -> None:
        agree("Concat", shapes, [], {"axis": axis})

    @few
    @given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 1))
    def test_gemm(self, features: int, rows: int, columns: int, transposed: int) -> None:
        bias = np.ones(rows if transposed else columns, np.float32)
        agree("Gemm", [(features,)], [np.ones((rows, columns), np.float32), bias], {"transB": transposed})

    @pytest.mark.parametrize("op", ["Relu", "Sigmoid", "HardSigmoid", "HardSwish", "Identity", "GlobalAveragePool"])
    def test_without_parameters(self, op: str) -> None:
        agree(op, [(2, 3, 4)], [], {})

    def test_flatten_clip_and_batch_normalization(self) -> None:
        agree("Flatten", [(2, 3, 4)], [], {"axis": 1})
        agree("Clip", [(2, 3, 4)], [np.float32(0), np.float32(6)], {})
        agree("BatchNormalization", [(2, 3, 4)], [np.ones(2, np.float32)] * 4, {})

"""Seeded damage to a bundle: raw bytes, or its parts with every hash and the digest made again afterwards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from edge_runtime.bundle.canonical import canonical_json
from edge_runtime.bundle.stored_zip import zip_stored
from tests.support.tiny import TinyParts

Rng = np.random.Generator
NUMBERS = (-(2**63), -1, 0, 1, 2, 3, 4, 5, 7, 8, 16, 17, 64, 65, 1000, 2**31 - 1, 2**31, 2**63 - 1)
UNARY = ("Relu", "Sigmoid", "HardSwish", "HardSigmoid", "Identity", "GlobalAveragePool", "Flatten", "Clip", "Softmax")
JSON_VALUES = (None, True, -1, 0, 1, 2**63, 1e308, -0.5, "", "x", "\u0000", "../weights.bin", [], [[]], {}, {"a": 1})


def seal(body: dict[str, Any], model: bytes, weights: bytes) -> bytes:
    """A `.nnf` of these contents with sizes, hashes and digest that fit."""
    body = {key: value for key, value in body.items() if key != "digest"}
    body["files"] = [
        {"path": path, "sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
        for path, content in (("model.onnx", model), ("weights.bin", weights))
    ]
    return zip_stored({"manifest.json": sign(body), "model.onnx": model, "weights.bin": weights})


def sign(body: dict[str, Any]) -> bytes:
    """Manifest bytes with a digest that fits whatever `body` says."""
    body = {key: value for key, value in body.items() if key != "digest"}
    return canonical_json(body | {"digest": hashlib.sha256(canonical_json(body)).hexdigest()})


def mutate_bytes(data: bytes, rng: Rng) -> bytes:
    """One to four random edits: flipped bits, overwritten, inserted, removed, doubled or zeroed runs, a cut end."""
    edited = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(0, max(1, len(edited))))
        run = int(rng.integers(1, 17))
        match int(rng.integers(0, 7)):
            case 0:
                edited[at : at + 1] = bytes([edited[at] ^ (1 << int(rng.integers(0, 8)))]) if edited else b""
            case 1:
                edited[at : at + run] = rng.bytes(run)
            case 2:
                edited[at:at] = rng.bytes(run)
            case 3:
                del edited[at : at + run]
            case 4:
                edited[at:at] = edited[at : at + run * 8]
            case 5:
                edited[at : at + run] = bytes([0 if rng.integers(0, 2) else 255]) * run
            case _:
                del edited[max(0, len(edited) - run) :]
    return bytes(edited)


def mutate_resealed(parts: TinyParts, body: dict[str, Any], rng: Rng) -> bytes:
    """Damage one part of `parts` so that it passes every hash and reaches what comes behind."""
    model, weights = parts.model.SerializeToString(deterministic=True), parts.weights
    match int(rng.integers(0, 10)):
        case 0:
            model = mutate_bytes(model, rng)
        case 1 | 2:
            body = mutate_json(body, rng)
        case 3:
            weights = mutate_bytes(weights, rng)
        case _:
            model = mutate_model(parts.model, rng).SerializeToString(deterministic=True)
    return seal(body, model, weights)


def mutate_json(body: dict[str, Any], rng: Rng) -> dict[str, Any]:
    """Replace, remove, add or swap one value somewhere in the tree."""
    edited: dict[str, Any] = json.loads(json.dumps(body))
    places = [(box, key) for box, key in _places(edited) if key not in ("digest", "files")]
    box, key = places[int(rng.integers(len(places)))]
    match int(rng.integers(0, 4)):
        case 0:
            del box[key]
        case 1 if isinstance(box, dict):
            box[str(key) + "_"] = box[key]
        case 2:
            other_box, other_key = places[int(rng.integers(len(places)))]
            box[key] = json.loads(json.dumps(other_box[other_key]))
        case _:
            box[key] = JSON_VALUES[int(rng.integers(len(JSON_VALUES)))]
    return edited


def _places(value: Any) -> list[tuple[Any, Any]]:
    if not isinstance(value, (dict, list)):
        return []
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]


def mutate_model(model: onnx.ModelProto, rng: Rng) -> onnx.ModelProto:
    """One to three structural edits; about a third of the results are graphs that a checker must let through."""
    edited = onnx.ModelProto()
    edited.CopyFrom(model)
    for _ in range(int(rng.integers(1, 4))):
        edit = EDITS[int(rng.integers(len(EDITS)))]
        edit(edited, rng)
    return edited


def all_graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """The graph and all branches inside it."""
    inner = [a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return [graph, *(deep for branch in inner for deep in all_graphs(branch))]


def _pick(items: Any, rng: Rng) -> Any:
    return items[int(rng.integers(len(items)))]


def _node(model: onnx.ModelProto, rng: Rng, ops: tuple[str, ...] = ()) -> onnx.NodeProto:
    nodes = [node for graph in all_graphs(model.graph) for node in graph.node]
    return _pick([node for node in nodes if not ops or node.op_type in ops] or nodes, rng)


def _values(model: onnx.ModelProto) -> list[str]:
    names = [name for graph in all_graphs(model.graph) for node in graph.node for name in node.output]
    return [*names, *(t.name for t in model.graph.initializer), "image", "gates", "", "nowhere"]


def _attribute(model: onnx.ModelProto, rng: Rng) -> None:
    node = _node(model, rng, ("Conv", "BatchNormalization", "Gather", "Flatten", "Gemm"))
    attribute = _pick(node.attribute, rng)
    if attribute.ints:
        attribute.ints[int(rng.integers(len(attribute.ints)))] = _pick(NUMBERS, rng)
    elif attribute.type == onnx.AttributeProto.INT:
        attribute.i = _pick(NUMBERS, rng)
    else:
        attribute.f = _pick((0.0, 1.0, -1.0, 1e-30, 3e38, float("nan"), float("inf")), rng)


def _same_size(model: onnx.ModelProto, rng: Rng) -> None:
    """Another convolution of the same output size."""
    node = _node(model, rng, ("Conv",))
    pads, dilation = _pick((((0, 0, 2, 2), 1), ((2, 2, 0, 0), 1), ((2, 0, 0, 2), 1), ((2, 2, 2, 2), 2)), rng)
    kept = [a for a in node.attribute if a.name not in ("pads", "dilations")]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.append(onnx.helper.make_attribute("pads", pads))
    node.attribute.append(onnx.helper.make_attribute("dilations", (dilation, dilation)))


def _operator(model: onnx.ModelProto, rng: Rng) -> None:
    _node(model, rng, ("Relu", "Identity")).op_type = _pick(UNARY, rng)


def _any_operator(model: onnx.ModelProto, rng: Rng) -> None:
    _node(model, rng).op_type = _pick(
        ("Add", "Mul", "Concat", "Less", "Loop", "Reshape", "Squeeze", "If", "MaxPool"), rng
    )


def _sum_to_product(model: onnx.ModelProto, rng: Rng) -> None:
    _node(model, rng, ("Add",)).op_type = "Mul"


def _rewire(model: onnx.ModelProto, rng: Rng) -> None:
    node = _node(model, rng)
    if node.input:
        node.input[int(rng.integers(len(node.input)))] = _pick(_values(model), rng)


def _rewire_near(model: onnx.ModelProto, rng: Rng) -> None:
    """An input becomes another input of the same node, or of a neighbour."""
    graph = _pick(all_graphs(model.graph), rng)
    one, other = _pick(graph.node, rng), _pick(graph.node, rng)
    one.input[int(rng.integers(len(one.input)))] = _pick(other.input, rng)


def _like_tensor(model: onnx.ModelProto, rng: Rng) -> None:
    """A tensor takes the place in the weight file, or the data, of another of the same shape."""
    one = _pick(model.graph.initializer, rng)
    other = _pick([t for t in model.graph.initializer if list(t.dims) == list(one.dims)], rng)
    name = one.name
    one.CopyFrom(other)
    one.name = name


def _raw_data(model: onnx.ModelProto, rng: Rng) -> None:
    inline = [t for t in model.graph.initializer if t.raw_data]
    tensor = _pick(inline, rng)
    data = bytearray(tensor.raw_data)
    at = int(rng.integers(len(data)))
    data[at : at + 4] = _pick((b"\0\0\xc0\x7f", b"\0\0\x80\xff", b"\xff\xff\xff\xff", rng.bytes(4)), rng)
    tensor.raw_data = bytes(data[: len(tensor.raw_data)])


def _dims(model: onnx.ModelProto, rng: Rng) -> None:
    tensor = _pick([t for t in model.graph.initializer if t.dims], rng)
    tensor.dims[int(rng.integers(len(tensor.dims)))] = _pick(NUMBERS, rng)


def _swapped_dims(model: onnx.ModelProto, rng: Rng) -> None:
    tensor = _pick([t for t in model.graph.initializer if t.dims], rng)
    dims = [int(d) for d in rng.permutation(list(tensor.dims))]
    del tensor.dims[:]
    tensor.dims.extend(dims)


def _data_type(model: onnx.ModelProto, rng: Rng) -> None:
    _pick(model.graph.initializer, rng).data_type = int(rng.integers(0, 25))


def _external(model: onnx.ModelProto, rng: Rng) -> None:
    tensor = _pick([t for t in model.graph.initializer if t.external_data], rng)
    entry = _pick(tensor.external_data, rng)
    places = ("0", "4", "1", "-1", "1e3", "", "99999999999999999999", "../weights.bin", "/etc/passwd", "weights.bin")
    entry.value = _pick(places, rng)


def _declared(model: onnx.ModelProto, rng: Rng) -> None:
    graph = _pick(all_graphs(model.graph), rng)
    tensor = _pick([*graph.output, *graph.input], rng).type.tensor_type
    if rng.integers(0, 4) == 0:
        tensor.elem_type = int(rng.integers(0, 25))
    elif tensor.shape.dim:
        _pick(tensor.shape.dim, rng).dim_value = _pick(NUMBERS, rng)


def _remove_node(model: onnx.ModelProto, rng: Rng) -> None:
    graph = _pick(all_graphs(model.graph), rng)
    if len(graph.node) > 1:
        del graph.node[int(rng.integers(len(graph.node)))]


def _swap_nodes(model: onnx.ModelProto, rng: Rng) -> None:
    graph = _pick(all_graphs(model.graph), rng)
    one, other = int(rng.integers(len(graph.node))), int(rng.integers(len(graph.node)))
    first, second = onnx.NodeProto(), onnx.NodeProto()
    first.CopyFrom(graph.node[one])
    second.CopyFrom(graph.node[other])
    graph.node[one].CopyFrom(second)
    graph.node[other].CopyFrom(first)


def _double_node(model: onnx.ModelProto, rng: Rng) -> None:
    graph = _pick(all_graphs(model.graph), rng)
    node = _pick(graph.node, rng)
    copy = graph.node.add()
    copy.CopyFrom(node)
    copy.name += "_again"
    for index, name in enumerate(copy.output):
        copy.output[index] = f"{name}_again"


def _longer_chain(model: onnx.ModelProto, rng: Rng) -> None:
    """More nodes in front of a Relu, in its branch, of the same shape; the result stays a valid graph."""
    graphs = [g for g in all_graphs(model.graph) if any(n.op_type == "Relu" for n in g.node)]
    if not graphs:
        return
    graph = _pick(graphs, rng)
    node = _pick([n for n in graph.node if n.op_type == "Relu"], rng)
    at = list(graph.node).index(node)
    for extra in reversed(_chain(node.input[0], f"{node.name}.more", rng)):
        graph.node.insert(at, extra)
    node.input[0] = f"{node.name}.more"


def _chain(x: str, out: str, rng: Rng) -> list[onnx.NodeProto]:
    """Nodes from `x` to `out` that keep its shape: elementwise, pooled in place, or scaled by a summary of itself."""
    op = _pick((*UNARY[:5], "MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "Mul", "Add"), rng)
    if op in ("MaxPool", "AveragePool"):
        side = int(rng.integers(1, 4))
        window = {"kernel_shape": [2 * side + 1] * 2, "pads": [side] * 4}
        return [onnx.helper.make_node(op, [x], [out], out, **window)]
    if op in ("GlobalAveragePool", "ReduceMean"):
        axes = {"axes": _pick(([2, 3], [3], [-1, 1], [1, 2, 3]), rng)} if op == "ReduceMean" else {}
        summary = onnx.helper.make_node(op, [x], [f"{out}.mean"], f"{out}.mean", **axes)
        inputs = [x, f"{out}.mean"] if rng.integers(0, 2) else [f"{out}.mean", x]
        return [summary, onnx.helper.make_node(_pick(("Mul", "Add"), rng), inputs, [out], out)]
    return [onnx.helper.make_node(op, [x, x] if op in ("Mul", "Add") else [x], [out], out)]


def _swap_branches(model: onnx.ModelProto, rng: Rng) -> None:
    node = _node(model, rng, ("If",))
    for attribute in node.attribute:
        attribute.name = {"then_branch": "else_branch", "else_branch": "then_branch"}.get(
            attribute.name, attribute.name
        )


def _rename(model: onnx.ModelProto, rng: Rng) -> None:
    node = _node(model, rng)
    node.name = _pick((*(f"group_{i}" for i in range(4)), "window_0", "window_1", "", "a b", "\u00e9", "x" * 300), rng)


def _model_fields(model: onnx.ModelProto, rng: Rng) -> None:
    match int(rng.integers(0, 5)):
        case 0:
            model.ir_version = _pick(NUMBERS, rng)
        case 1:
            model.opset_import[0].version = _pick(NUMBERS, rng)
        case 2:
            model.opset_import.add(domain="com.microsoft", version=1)
        case 3:
            model.producer_name = "x" * int(rng.integers(0, 100))
        case _:
            _node(model, rng).domain = _pick(("com.microsoft", "ai.onnx.ml", "com.microsoft.nchwc"), rng)


HARMLESS: tuple[Callable[[onnx.ModelProto, Rng], None], ...] = (
    _same_size,
    _operator,
    _sum_to_product,
    _like_tensor,
    _raw_data,
    _longer_chain,
    _swap_branches,
)
EDITS = (
    *HARMLESS,
    *HARMLESS,
    _any_operator,
    _attribute,
    _data_type,
    _declared,
    _dims,
    _double_node,
    _external,
    _model_fields,
    _remove_node,
    _rename,
    _rewire,
    _rewire_near,
    _swap_nodes,
    _swapped_dims,
)

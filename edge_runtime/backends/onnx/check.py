"""Judge a bundle's graph before onnxruntime sees it.

Passing means: only allowed operators in allowed ranges, shapes that work out through every branch, gates that exist and
decide something, and inputs and outputs as the manifest says. That is the form which `builder.export` writes, and no
other: onnxruntime is no security boundary, mutated graphs have crashed it. It is no promise about the weights' values.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edge_runtime.backends.onnx.shapes import RULES
from edge_runtime.backends.onnx.values import MAX_ELEMENTS, Value
from edge_runtime.backends.onnx.wire import (
    check_name,
    parse_model,
    read_attributes,
    read_branches,
    read_initializer,
    read_value_info,
)
from edge_runtime.bundle import Bundle, Manifest
from edge_runtime.errors import BundleError

__all__ = ["check_graph"]

IR_VERSION = 8
OPSET = 17
MAX_DEPTH = 16
MAX_NODES = 65_536
MAX_INITIALIZERS = 65_536
MAX_MULTIPLY_ADDS = 2**38
MAX_TOTAL_ELEMENTS = 2**30
MAX_WEIGHT_USES = 2**28
MAX_SWITCHED_WEIGHTS = 2048
MAX_SWITCHED_CHANNELS = 2**20
_Scope = ChainMap[str, Value]
_DECISION = re.compile(r"(?:group|window)_([0-9]{1,4})(?:_tree_[0-9]{1,4})?")


def check_graph(bundle: Bundle) -> None:
    """Raise `BundleError` unless the bundle's graph is one that the format allows and that fits its manifest."""
    try:
        _check_graph(bundle)
    except BundleError as error:
        raise BundleError(f"the graph of {bundle.source!r} is refused: {error.message}", hint=error.hint) from error


def _check_graph(bundle: Bundle) -> None:
    model = parse_model(bundle.model_bytes)
    opsets = [(opset.domain, opset.version) for opset in model.opset_import]
    if model.ir_version != IR_VERSION or opsets != [("", OPSET)]:
        raise BundleError(
            f"it has IR version {model.ir_version} and the opsets {opsets}",
            hint=f"bundles have IR version {IR_VERSION} and opset {OPSET} only",
        )
    walk = _Walk(batch=_batch_name(model.graph))
    scope = _declared_inputs(model.graph, bundle.manifest, walk)
    if len(model.graph.initializer) > MAX_INITIALIZERS:
        raise BundleError(f"it has {len(model.graph.initializer)} initializers, more than {MAX_INITIALIZERS}")
    for tensor in model.graph.initializer:
        scope[walk.claim(tensor.name)] = read_initializer(tensor, bundle.weights)
    values = walk.nodes(model.graph, ChainMap(scope), depth=0)
    _check_outputs(model.graph, bundle.manifest, values, walk)
    walk.check_gates(bundle.manifest)


def _batch_name(graph: Any) -> str:
    """The name of the free batch dimension: that of the first input which has one."""
    for info in graph.input:
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param:
                return check_name(dim.dim_param, "a dimension")
    raise BundleError("no input has a free batch dimension")


def _declared_inputs(graph: Any, manifest: Manifest, walk: _Walk) -> dict[str, Value]:
    wanted = {spec.name: Value(spec.dtype, spec.shape) for spec in manifest.inputs}
    if any(value.dtype != "float32" or value.shape[:1] != (None,) for value in wanted.values()):
        raise BundleError("the manifest has an input besides the gates that is not float32 with the batch first")
    wanted[manifest.gate_input] = Value("int64", (manifest.space.width,))
    found = {walk.claim(info.name): read_value_info(info, walk.batch) for info in graph.input}
    _compare("inputs", found, wanted)
    return found


def _check_outputs(graph: Any, manifest: Manifest, values: Mapping[str, Value], walk: _Walk) -> None:
    declared = {info.name: read_value_info(info, walk.batch) for info in graph.output}
    if len(declared) != len(graph.output):
        raise BundleError("it names an output twice")
    _compare("outputs", declared, {spec.name: Value(spec.dtype, spec.shape) for spec in manifest.outputs})
    for name, value in declared.items():
        if values.get(name) != value:
            raise BundleError(f"output {name!r} is declared {value.shape}, but no node makes that")


def _compare(what: str, found: Mapping[str, Value], wanted: Mapping[str, Value]) -> None:
    if found != wanted:
        shown = [", ".join(f"{n} {v.dtype} {list(v.shape)}" for n, v in side.items()) for side in (found, wanted)]
        raise BundleError(f"its {what} are {shown[0]}; the manifest says {shown[1]}")


@dataclass(slots=True)
class _Walk:
    """Goes through all nodes once, in order, with what must be unique or bounded over the whole graph."""

    batch: str
    names: set[str] = field(default_factory=set)
    node_names: set[str] = field(default_factory=set)
    tested: set[int] = field(default_factory=set)
    decisions: list[tuple[str, int, int]] = field(default_factory=list)
    multiply_adds: int = 0
    elements: int = 0
    weight_uses: int = 0
    switched: list[tuple[str, frozenset[int]]] = field(default_factory=list)
    switched_channels: int = 0

    def claim(self, name: str) -> str:
        """`name`, for the one value in the whole graph that may have it."""
        if check_name(name, "a value") in self.names:
            raise BundleError(f"two values are named {name[:60]!r}")
        self.names.add(name)
        return name

    def nodes(self, graph: Any, scope: _Scope, depth: int) -> Mapping[str, Value]:
        """The values that the nodes of `graph` make, given those it can see."""
        visible = scope.new_child()
        for node in graph.node:
            if check_name(node.name, "a node") in self.node_names or len(self.node_names) >= MAX_NODES:
                raise BundleError(f"two nodes are named {node.name[:60]!r}, or there are more than {MAX_NODES}")
            self.node_names.add(node.name)
            try:
                value = self._node(node, visible, depth)
            except BundleError as error:
                inner = error.message.startswith("node ")
                text = error.message if inner else f"node {node.name!r} ({node.op_type[:40]!a}): {error.message}"
                raise BundleError(text, hint=error.hint) from error
            visible[self.claim(node.output[0])] = value
        return visible.maps[0]

    def _node(self, node: Any, scope: _Scope, depth: int) -> Value:
        if len(node.output) != 1 or node.domain:
            raise BundleError("it is not of the default domain with one output")
        inputs = [_find(name, scope) for name in node.input]
        if node.op_type == "If":
            return self._if(node, inputs, scope, depth)
        rule = RULES.get(node.op_type)
        if rule is None:
            raise BundleError("the operator is not allowed", hint=f"allowed: If, {', '.join(RULES)}")
        if not rule.inputs[0] <= len(inputs) <= rule.inputs[1] or inputs[0] is None:
            raise BundleError(f"it has {len(inputs)} inputs")
        if not rule.elastic and any(v and v.elastic for v in inputs):
            raise BundleError("it cannot take what gates switch channels of", hint="only Conv and activations can")
        if depth and any(v and (v.elastic or v.channels) for v in inputs):
            raise BundleError("channels are switched in the outermost graph only, not in a branch")
        attributes = read_attributes(node, rule.attributes)
        value = rule.infer(attributes, inputs)
        self._charge(inputs, value, rule.work(attributes, inputs, value) if rule.work else 0)
        self._note_channels(node, inputs[0], value)
        return value

    def _note_channels(self, node: Any, first: Value, value: Value) -> None:
        """Which gates switch channels, and which of those a convolution reads in the end; bounded."""
        if value.channels:
            self.switched_channels += len(value.channels)
        if node.op_type == "Compress" and value.elastic:
            self.switched.append((node.name, frozenset(value.elastic.channels)))
        if node.op_type == "Conv" and first.elastic:
            self.tested.update(first.elastic.channels)
        if self.switched_channels > MAX_SWITCHED_CHANNELS or len(self.switched) > MAX_SWITCHED_WEIGHTS:
            raise BundleError(
                f"gates switch more than {MAX_SWITCHED_CHANNELS} channels or {MAX_SWITCHED_WEIGHTS} weights"
            )

    def _charge(self, inputs: list[Value | None], value: Value, work: int) -> None:
        """Bound memory and time over the whole graph; a weight counts once per use, for each use packs a copy."""
        self.weight_uses += next((_as_float32(v) for v in inputs[1:] if v and _is_weight(v) and len(v.shape) > 1), 0)
        self.elements += _as_float32(value)
        self.multiply_adds += work + value.elements + sum(v.elements for v in inputs if v and not _is_weight(v))
        if (
            value.elements > MAX_ELEMENTS
            or self.elements > MAX_TOTAL_ELEMENTS
            or self.weight_uses > MAX_WEIGHT_USES
            or self.multiply_adds > MAX_MULTIPLY_ADDS
        ):
            raise BundleError(
                f"the graph needs too much: {self.multiply_adds} multiply-adds, {self.elements} values, "
                f"{self.weight_uses} weights over all uses"
            )

    def _if(self, node: Any, inputs: list[Value | None], scope: _Scope, depth: int) -> Value:
        if depth >= MAX_DEPTH:
            raise BundleError(f"decisions are nested more than {MAX_DEPTH} deep")
        if len(inputs) != 1 or inputs[0] is None or inputs[0].dtype != "bool" or inputs[0].gate is None:
            raise BundleError("its condition does not test a gate")
        match = _DECISION.fullmatch(node.name)
        if match is None:
            raise BundleError("a decision is named group_<i> or window_<i>, with _tree_<n> for inner ones")
        self.decisions.append((node.name, int(match[1]), inputs[0].gate))
        self.tested.add(inputs[0].gate)
        values = [self._branch(branch, scope, depth + 1) for branch in read_branches(node)]
        if values[0] != values[1]:
            raise BundleError(f"its branches give {values[0].shape} and {values[1].shape}")
        return values[0]

    def _branch(self, graph: Any, scope: _Scope, depth: int) -> Value:
        if graph.input or graph.initializer or len(graph.output) != 1:
            raise BundleError("a branch has no inputs, no initializers and one output")
        check_name(graph.name, "a branch")
        made = self.nodes(graph, scope, depth)
        declared = read_value_info(graph.output[0], self.batch)
        if made.get(graph.output[0].name) != declared or declared.dtype != "float32":
            raise BundleError(f"branch {graph.name!r} declares {declared.shape}, but no node of it makes that")
        return declared

    def check_gates(self, manifest: Manifest) -> None:
        """Every gate decides something, and each decision is about the group that its name says."""
        first, start = [], 0
        for group in manifest.space.groups:
            first.append(start)
            start += group.width
        for name, index, gate in self.decisions:
            groups = manifest.space.groups
            if index >= len(groups) or not first[index] <= gate < first[index] + groups[index].width:
                raise BundleError(f"decision {name!r} tests entry {gate} of the gate vector, which is another group's")
        self._check_switched(manifest, first)
        needed = {at + i for at, group in zip(first, manifest.space.groups, strict=True) for i in range(group.width)}
        unused = needed - self.tested - {at for at, g in zip(first, manifest.space.groups, strict=True) if g.size == 1}
        if unused:
            raise BundleError(f"no decision tests the entries {sorted(unused)[:10]} of the gate vector")

    def _check_switched(self, manifest: Manifest, first: list[int]) -> None:
        """Channels are switched by all modules of one group: as one of those is on, no layer is ever without any."""
        starts = zip(first, manifest.space.groups, strict=True)
        subsets = {frozenset(range(at, at + group.width)) for at, group in starts if group.kind == "subset"}
        for name, entries in self.switched:
            if entries not in subsets:
                raise BundleError(
                    f"{name!r} compresses by the entries {sorted(entries)[:10]} of the gate vector",
                    hint="use every entry of one subset group, and no other",
                )


def _is_weight(value: Value) -> bool:
    return value.stored or value.decoded


def _as_float32(value: Value) -> int:
    """Elements of float32 that take as much memory."""
    return -(-value.elements // 4) if value.dtype in ("int8", "uint8") else value.elements


def _find(name: str, scope: Mapping[str, Value]) -> Value | None:
    """The value named `name`; None for an optional input that is left out."""
    if name and name not in scope:
        raise BundleError(f"it uses {name[:60]!r}, which nothing before it makes")
    return scope[name] if name else None

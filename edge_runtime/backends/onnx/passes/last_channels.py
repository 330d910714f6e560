"""Where onnxruntime has put a Transpose between codes and the convolutions of codes, which have the channels last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edge_runtime.backends.onnx.passes.conversions import FROM_LAST, TO_LAST, Conversions
from edge_runtime.backends.onnx.passes.scope import CHANNELS, Scope, Shape, Value

__all__ = ["LastChannels"]


@dataclass(slots=True)
class LastChannels:
    """Transposes of codes that one node alone reads or makes."""

    encoding: dict[str, str]
    """Name of a QuantizeLinear whose only reader is a Transpose to the channels last, and what that gives."""

    decoding: dict[str, str]
    """Name of a DequantizeLinear that alone reads a Transpose from the channels last, and what it reads."""

    taken_over: set[str] = field(default_factory=set)
    """Outputs of Transposes that are not needed any more."""

    @classmethod
    def found_in(cls, nodes: Iterable[Any], uses: Counter[str]) -> LastChannels:
        """Those among some nodes of unique names, given how often each value is read."""
        encoders, decoders, transposes = dict[str, str](), dict[str, str](), list[Any]()
        for node in nodes:
            if node.op_type == "QuantizeLinear" and uses[node.output[0]] == 1:
                encoders[node.output[0]] = node.name
            elif node.op_type == "DequantizeLinear" and uses[node.input[0]] == 1:
                decoders[node.input[0]] = node.name
            elif node.op_type == "Transpose":
                transposes.append(node)
        encoding = {
            encoders[n.input[0]]: n.output[0] for n in transposes if _order(n) == TO_LAST and n.input[0] in encoders
        }
        decoding = {
            decoders[n.output[0]]: n.output[0] for n in transposes if _order(n) == FROM_LAST and n.output[0] in decoders
        }
        return cls(encoding, decoding)

    def take_over(self, node: Any, scope: Scope, conversions: Conversions, shapes: Mapping[str, Shape]) -> bool:
        """Make codes of a value that is not plain, and such a value of codes; whether `node` was a part of that."""
        if node.op_type == "Transpose" and node.output[0] in self.taken_over:
            return True
        if node.name in self.encoding:
            return self._encoded(node, scope, conversions)
        return self._decoded(node, scope, conversions, shapes)

    def _encoded(self, node: Any, scope: Scope, conversions: Conversions) -> bool:
        value = scope.find(node.input[0])
        if not (value.last or value.blocked) or value.channels is None:
            return False
        self.taken_over.add(self.encoding[node.name])
        node.output[0] = self.encoding[node.name]
        scope.emit(node, [conversions.last_of(scope, value), *node.input[1:]])
        return True

    def _decoded(self, node: Any, scope: Scope, conversions: Conversions, shapes: Mapping[str, Shape]) -> bool:
        if node.op_type == "Transpose" and node.output[0] in self.decoding.values():
            shape = shapes.get(node.output[0])
            channels = shape[1] if shape is not None and len(shape) == 4 else None
            if isinstance(channels, int) and not channels % CHANNELS:
                source = conversions.of_name(scope, node.input[0], blocked=False)
                scope.define(node.output[0], Value(last=source, channels=channels))
                self.taken_over.add(node.output[0])
                return True
        if self.decoding.get(node.name) in self.taken_over:
            value = scope.find(node.input[0])
            scope.emit_last(node, [str(value.last), *node.input[1:]], value.channels)
            return True
        return False


def _order(node: Any) -> tuple[int, ...]:
    return next((tuple(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), ())

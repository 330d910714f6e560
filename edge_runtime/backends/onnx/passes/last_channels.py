"""Where onnxruntime has put a Transpose between codes and the convolutions of codes, which have the channels last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["FROM_LAST", "LastChannels"]

_TO_LAST, FROM_LAST = (0, 2, 3, 1), (0, 3, 1, 2)


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
            encoders[n.input[0]]: n.output[0] for n in transposes if _order(n) == _TO_LAST and n.input[0] in encoders
        }
        decoding = {
            decoders[n.output[0]]: n.output[0] for n in transposes if _order(n) == FROM_LAST and n.output[0] in decoders
        }
        return cls(encoding, decoding)


def _order(node: Any) -> tuple[int, ...]:
    return next((tuple(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), ())

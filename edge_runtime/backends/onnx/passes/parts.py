"""One gated graph as a few that run one behind the other, so that subnets with the same beginning run it once.

A cut is in front of a decision through which one value alone flows. Each part is fed the decisions like the whole, and
reads those in front of its end only; so what it gives depends on these and on the inputs, and on nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edge_runtime.backends.onnx.passes.decisions import Decisions
from edge_runtime.backends.onnx.passes.names import copied
from edge_runtime.backends.onnx.passes.whole import reads, rename_nodes

__all__ = ["Part", "cut_in_parts"]

SHARES = (8, 4)
"""Cuts are at the first decision behind this part of all: early ones are shared by many subnets and dear to run. Of all
pairs of cuts these saved most, or next to it, in searches of a MobileNetV2."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the gated graph as a graph of its own."""

    model: Any
    """The ModelProto; it refers to the same file of tensors."""

    taken: str
    """Name of the value that the part before gave; empty for the first, which takes the inputs."""

    given: str
    """Name of the value for the next part; empty for the last, which gives the outputs."""

    bits: tuple[int, ...]
    """Which decisions it and those before it depend on: places in the fed vector."""


def cut_in_parts(model: Any, decisions: Decisions) -> list[Part]:
    """The parts in their order; fewer than two where there is no place for a cut.

    Args:
        model: What `decide_outside` and `run_default_whole` made; it is not changed.
        decisions: How the fed vector is made.
    """
    flat = _Flat(model, decisions)
    ends = [*flat.cuts(), len(flat.nodes)]
    parts, start, taken, bits = list[Part](), 0, "", set[int]()
    for end in ends:
        given = flat.crossing(end) if end < len(flat.nodes) else ""
        assert given is not None
        bits |= flat.bits_read(start, end)
        parts.append(Part(flat.model(start, end, taken, given), taken, given, tuple(sorted(bits))))
        start, taken = end, given
    return parts


class _Flat:
    """The gated graph without the default path that stands beside the decisions."""

    def __init__(self, model: Any, decisions: Decisions) -> None:
        self._model, self._decisions = model, decisions
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        nodes = self._unfolded(model.graph.node)
        feeding = {f"{decisions.name}_first", f"{decisions.name}_bits"}
        self._feeding = [node for node in nodes if node.name in feeding]
        self._bits = {name: place for place, name in enumerate(self._bit_names())}
        self.nodes = [node for node in nodes if node.name not in feeding]
        self._made = {name: place for place, node in enumerate(self.nodes) for name in node.output}
        self._made |= {value.name: -1 for value in model.graph.input if value.name != decisions.name}
        self._last = {name: place for place, node in enumerate(self.nodes) for name in reads(node)}
        self._last |= {value.name: len(self.nodes) for value in model.graph.output}

    def _unfolded(self, nodes: Sequence[Any]) -> list[Any]:
        """The nodes with those of the decisions in the place of the `If` around them."""
        flat: list[Any] = []
        for node in nodes:
            if node.op_type != "If" or list(node.input) != [f"{self._decisions.name}_whole"]:
                flat.append(copied(node))
                continue
            inner = next(attribute.g for attribute in node.attribute if attribute.name == "else_branch")
            self._tensors |= {tensor.name: tensor for tensor in inner.initializer}
            outer = dict(zip((value.name for value in inner.output), node.output, strict=True))
            unfolded = [copied(each) for each in inner.node]
            rename_nodes(unfolded, outer)
            flat += unfolded
        return flat

    def _bit_names(self) -> list[str]:
        return [name for node in self._feeding if node.name == f"{self._decisions.name}_bits" for name in node.output]

    def cuts(self) -> list[int]:
        """Where the parts but the first begin: one place for each of `SHARES`, where there is one."""
        entries, places = self._decisions.entries, list[int]()
        for share in SHARES:
            least = len(self._decisions.default) / share
            for place, node in enumerate(self.nodes):
                first = min((entries[self._bits[name]] for name in reads(node) if name in self._bits), default=-1)
                if first >= least and place > max(places, default=0) and self.crossing(place) is not None:
                    places.append(place)
                    break
        return places

    def crossing(self, place: int) -> str | None:
        """The one value that is made in front of a node and read from it on; None where there are several."""
        names = [name for name, made in self._made.items() if made < place <= self._last.get(name, -1)]
        return names[0] if len(names) == 1 and self._made[names[0]] >= 0 else None

    def bits_read(self, start: int, end: int) -> set[int]:
        """Places of the decisions that some nodes read."""
        return {self._bits[name] for node in self.nodes[start:end] for name in reads(node) if name in self._bits}

    def model(self, start: int, end: int, taken: str, given: str) -> Any:
        """A ModelProto of some of the nodes."""
        from onnx import ModelProto

        nodes = self.nodes[start:end]
        decided = bool(self.bits_read(start, end))
        nodes = [*(self._feeding if decided else []), *nodes]
        used = {name for node in nodes for name in reads(node)}
        made = ModelProto(ir_version=self._model.ir_version, producer_name=self._model.producer_name)
        made.opset_import.extend(self._model.opset_import)
        made.graph.name = self._model.graph.name
        made.graph.node.extend(nodes)
        made.graph.initializer.extend(tensor for name, tensor in self._tensors.items() if name in used)
        made.graph.input.extend(value for value in self._model.graph.input if value.name in used)
        made.graph.input.extend(_values([taken] if taken else []))
        made.graph.output.extend(_values([given]) if given else self._model.graph.output)
        return made


def _values(names: Sequence[str]) -> Iterator[Any]:
    """Declarations of float values of unknown shape: a blocked layout has none that the graph would say."""
    from onnx import TensorProto, ValueInfoProto

    for name in names:
        value = ValueInfoProto(name=name)
        value.type.tensor_type.elem_type = TensorProto.FLOAT
        yield value

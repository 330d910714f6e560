"""Activations of one graph while the crossing pass rewrites it: which layouts of each exist, and by which names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

__all__ = ["CHANNELS", "Scope", "Shape", "Value"]

Shape: TypeAlias = tuple[int | str, ...]
"""Sizes of a tensor; a name where a size is free."""

CHANNELS = 4
"""ReorderInput takes a multiple of this many channels."""


@dataclass(frozen=True, slots=True)
class Value:
    """One activation and the name of each layout in which it was computed, at least one."""

    plain: str | None = None
    blocked: str | None = None
    last: str | None = None
    """With the channels last, as codes are decoded."""

    channels: int | None = None
    """Logical channels; None where only blocked operators ever read it."""


class Scope:
    """One graph while it is rewritten; sees what is known in the graphs around it."""

    def __init__(self, parent: Scope | None) -> None:
        self.nodes: list[Any] = []
        self._parent = parent
        self._values: dict[str, Value] = {}
        self._converted: dict[tuple[str, bool], str] = {}

    def define(self, name: str, value: Value) -> None:
        """What a name of the dump stands for from now on."""
        self._values[name] = value

    def find(self, name: str) -> Value:
        """What a name stands for; inputs and weights are as they are."""
        if name in self._values:
            return self._values[name]
        return self._parent.find(name) if self._parent else Value(plain=name)

    def rename(self, old: str, new: str) -> None:
        """Follow a blocked value to a new name, wherever it is known."""
        for name, value in self._values.items():
            if value.blocked == old:
                self._values[name] = replace(value, blocked=new)
        self._converted = {(new if at == old else at, to): made for (at, to), made in self._converted.items()}

    def remember(self, source: str, blocked: bool, made: str) -> None:
        """A conversion that was put into this graph."""
        self._converted[source, blocked] = made

    def converted(self, source: str, blocked: bool) -> str | None:
        """An earlier conversion of the same value, here or further out."""
        made = self._converted.get((source, blocked))
        return made if made or self._parent is None else self._parent.converted(source, blocked)

    def producer(self, name: str | None) -> Any:
        """The node of this very graph that computes a name; None where it comes from elsewhere."""
        return next((node for node in reversed(self.nodes) if name in node.output), None)

    def emit(self, node: Any, inputs: list[str], *, blocked: bool = False, channels: int | None = None) -> None:
        """Keep a node, with other inputs; its outputs are of one layout."""
        node.input[:] = inputs
        self.nodes.append(node)
        for name in node.output:
            value = Value(blocked=name, channels=channels) if blocked else Value(plain=name, channels=channels)
            self.define(name, value)

    def emit_last(self, node: Any, inputs: list[str], channels: int | None) -> None:
        """Keep a node that works with the channels last."""
        name = node.output[0]
        node.input[:], node.output[0] = inputs, f"{name}~last"
        self.nodes.append(node)
        self.define(name, Value(last=node.output[0], channels=channels))

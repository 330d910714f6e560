"""Conversions between the layouts of an activation, each made once, where an operator needs another layout."""

from __future__ import annotations

from edge_runtime.backends.onnx.passes.scope import Scope, Value
from edge_runtime.errors import BackendError

__all__ = ["FROM_LAST", "NCHWC_DOMAIN", "TO_LAST", "Conversions"]

NCHWC_DOMAIN = "com.microsoft.nchwc"
"""Of onnxruntime's operators on blocked values."""

TO_LAST, FROM_LAST = (0, 2, 3, 1), (0, 3, 1, 2)
"""Orders of the axes by which a Transpose puts the channels last, and back."""


class Conversions:
    """Puts conversions into the graphs that need them; all names that it makes are unique."""

    def __init__(self) -> None:
        from onnx import NodeProto

        self._node_type = NodeProto
        self._made = 0
        self.added = 0
        """Conversions that were put into a graph, but for Transposes."""

    def of_name(self, scope: Scope, name: str, *, blocked: bool) -> str:
        """The name of a value in one layout; empty where `name` is, as an optional input that is not given."""
        return self.of_value(scope, scope.find(name), blocked=blocked) if name else ""

    def of_value(self, scope: Scope, value: Value, *, blocked: bool) -> str:
        """The name of a value in one layout; converts it where it does not exist in that layout yet.

        Raises:
            BackendError: its channels are not known.
        """
        there, source = (value.blocked, value.plain) if blocked else (value.plain, value.blocked)
        if there:
            return there
        if value.last and not source:
            return self._from_last(scope, value.last, blocked=blocked)
        if source is None or value.channels is None:
            raise BackendError(f"the layout of {value} cannot be changed", hint="the plain form is used instead")
        if (made := scope.converted(source, blocked)) is None:
            made = self._blocking(scope, source, value.channels, blocked=blocked)
            scope.remember(source, blocked, made)
        return made

    def last_of(self, scope: Scope, value: Value) -> str:
        """The name of a value that is not plain, with the channels last."""
        if value.last:
            return value.last
        return self._reorder(scope, "ReorderOutput", str(value.blocked), channels=value.channels)

    def output_of(self, scope: Scope, value: Value, name: str | None, *, blocked: bool) -> str:
        """A name of this very graph for a value in one layout, to be an output; it is `name` where one is given."""
        found = self.of_value(scope, value, blocked=blocked)
        if found == name or (name is None and scope.producer(found) is not None):
            return found
        self._made += 1
        target = name or f"{found}~out{self._made}"
        scope.nodes.append(self._node_type(op_type="Identity", input=[found], output=[target], name=f"{target}~copy"))
        return target

    def _blocking(self, scope: Scope, source: str, channels: int, *, blocked: bool) -> str:
        """Convert between the plain and the blocked layout."""
        self._made += 1
        self.added += 1
        made = f"{source}~{'blocked' if blocked else 'plain'}{self._made}"
        operator = "ReorderInput" if blocked else "ReorderOutput"
        node = self._node_type(op_type=operator, domain=NCHWC_DOMAIN, input=[source], output=[made], name=made)
        if not blocked:
            node.attribute.add(name="channels", type=2, i=channels)
        scope.nodes.append(node)
        return made

    def _from_last(self, scope: Scope, source: str, *, blocked: bool) -> str:
        if (made := scope.converted(source, blocked)) is None:
            made = self._reorder(scope, "ReorderInput", source) if blocked else self._transposed(scope, source)
            scope.remember(source, blocked, made)
        return made

    def _transposed(self, scope: Scope, source: str) -> str:
        self._made += 1
        made = f"{source}~plain{self._made}"
        node = self._node_type(op_type="Transpose", input=[source], output=[made], name=made)
        node.attribute.add(name="perm", type=7, ints=FROM_LAST)
        scope.nodes.append(node)
        return made

    def _reorder(self, scope: Scope, operator: str, source: str, *, channels: int | None = None) -> str:
        """Convert a value from or to the layout that has the channels last."""
        self._made += 1
        self.added += 1
        made = f"{source}~last{self._made}"
        node = self._node_type(op_type=operator, domain=NCHWC_DOMAIN, input=[source], output=[made], name=made)
        node.attribute.add(name="channels_last", type=2, i=1)
        if channels is not None:
            node.attribute.add(name="channels", type=2, i=channels)
        scope.nodes.append(node)
        return made

"""The shapes of everything in a traced module, found by running it without data."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from builder.elastify.trace import shape_of
from builder.errors import BuildError
from builder.export.lower.values import Shape

__all__ = ["read_shapes"]


class _ShapeReader(fx.Interpreter):
    """Runs a module on shapes alone. Recorded shapes do not serve: those of narrower copies are the original's."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        if not n.users and n.op not in ("placeholder", "output"):
            return None  # nothing reads it; torch.export's guards are such nodes
        self.found[n] = super().run_node(n)
        return self.found[n]


def read_shapes(module: fx.GraphModule) -> dict[fx.Node, Any]:
    """What each node that is read gives: a tensor without data, a number, or a tuple of those.

    Raises:
        BuildError: the module cannot be run on the shapes that its placeholders were traced with.
    """
    given = [_given(node) for node in module.graph.nodes if node.op == "placeholder"]
    reader = _ShapeReader(module)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        try:
            reader.run(*(torch.empty(shape) for shape in given))
        except Exception as error:  # whatever a user's module raises
            text = " ".join(str(error).split())[:300]
            raise BuildError(f"the traced module does not run: {text}", hint="trace it again") from error
    return reader.found


def _given(node: fx.Node) -> Shape:
    shape = shape_of(node)
    if not shape:
        raise BuildError(f"the input {node.name!r} has no shape", hint="trace the module with an example")
    return shape

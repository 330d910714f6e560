"""Record shapes, and turn sizes that the graph computes into numbers.

Code like ``x.view(x.size(0), -1)`` or ``n, c, h, w = x.shape`` leaves integers in the graph. The graph is run for two
batch sizes: what is the same in both is a constant of this resolution, and in a view the one dimension that differs is
left to torch (-1). Integers that are still needed afterwards stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch.fx.passes.shape_prop import ShapeProp

__all__ = ["settle_shapes"]

_RESHAPES = ("view", "reshape")


def settle_shapes(traced: fx.GraphModule, examples: tuple[Tensor, ...]) -> None:
    """Record the shape of every value for `examples` and write sizes as numbers; the batch stays free."""
    once = _Recorder(traced).record(examples)
    twice = _Recorder(traced).record(tuple(torch.cat([value, value]) for value in examples))
    constants = {node: value for node, value in once.plain.items() if _is_size(value) and value == twice.plain[node]}
    for node in traced.graph.nodes:
        wanted = _free_batch(once.shapes[node], twice.shapes[node]) if _is_reshape(node) else None
        if wanted is not None:
            node.op, node.target = "call_method", "reshape"
            node.args, node.kwargs = (node.args[0], *wanted), {}
            continue
        node.args = fx.node.map_arg(node.args, lambda source: constants.get(source, source))
        node.kwargs = fx.node.map_arg(node.kwargs, lambda source: constants.get(source, source))
    traced.graph.eliminate_dead_code()
    traced.recompile()
    with torch.no_grad():
        ShapeProp(traced).propagate(*examples)


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps the shape of each tensor and the value of everything else that is computed."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.shapes: dict[fx.Node, torch.Size] = {}
        self.plain: dict[fx.Node, object] = {}

    def record(self, examples: tuple[Tensor, ...]) -> _Recorder:
        with torch.no_grad():
            self.run(*examples)
        return self

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = result.shape
        elif n.op in ("call_function", "call_method"):
            self.plain[n] = tuple(result) if isinstance(result, torch.Size) else result
        return result


def _is_size(value: object) -> bool:
    items = value if isinstance(value, tuple) else (value,)
    return all(isinstance(item, (int, float)) for item in items)


def _is_reshape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _RESHAPES
    return node.op == "call_function" and node.target is torch.reshape


def _free_batch(shape: torch.Size, other: torch.Size) -> list[int] | None:
    """The shape with -1 where the batch is in it; None where that is not one dimension."""
    free = [axis for axis, (first, second) in enumerate(zip(shape, other, strict=True)) if first != second]
    if len(free) != 1:
        return None
    return [-1 if axis == free[0] else size for axis, size in enumerate(shape)]

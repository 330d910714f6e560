"""Translate a traced torch module into ONNX nodes.

`walk` goes through the nodes; `modules` says what a module computes, in the words of torch's functions; the other
files translate functions, found by name in the table of `table`: convolution, norms, pooling, activations,
arithmetic, layout, resizing. Methods, functions, modules and aten operators all lead to the same translations.

Every convolution is followed by a BatchNormalization node, an identity one where the source has none: without it
onnxruntime keeps a convolution inside an `If` whose weights live outside in the slow plain layout. Constant padding is
written into the `pads` of the convolution behind it. The batch dimension is never written down, so it stays free.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx, nn

from builder.errors import BuildError
from builder.export.lower.walk import Lowering
from builder.onnx_writer import GraphWriter

__all__ = ["lower", "lower_many"]


def lower(writer: GraphWriter, module: nn.Module, prefix: str, x: str) -> str:
    """Append the nodes of `module`, which has one input and one output, reading value `x`; its output's name.

    Raises:
        BuildError: an operation has no translation, with its name; or there are several inputs or outputs.
    """
    outputs = lower_many(writer, module, prefix, [x])
    if len(outputs) != 1:
        raise BuildError(f"{prefix!r} gives {len(outputs)} values where one is needed")
    return outputs[0]


def lower_many(writer: GraphWriter, module: nn.Module, prefix: str, inputs: Sequence[str]) -> list[str]:
    """Append the nodes of `module` (from `trace` or `subgraph`) reading the values `inputs`; names of its outputs.

    Args:
        writer: What the nodes and weights are added to.
        module: A traced module whose placeholders carry the shape that they were traced with, batch first; any other
            module stands for the identity of its one input.
        prefix: What the names of its nodes and weights begin with.
        inputs: One value for each placeholder, in order.

    Returns:
        One name for each tensor that the module returns, in order, nested tuples and lists flattened. Each is made by
        a node of its own, so that it can be what a branch gives.

    Raises:
        BuildError: an operation has no translation, with its name; or the number of inputs does not fit.
    """
    if isinstance(module, fx.GraphModule):
        return Lowering(writer, module, prefix).run(inputs)
    if len(inputs) != 1:
        raise BuildError(f"{type(module).__name__} at {prefix!r} is not traced and has {len(inputs)} inputs")
    return [writer.node("Identity", inputs, f"{prefix}.identity")]

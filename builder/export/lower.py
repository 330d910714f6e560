"""Translate one traced torch module into ONNX nodes.

Every convolution is followed by a BatchNormalization node, an identity one where the source has none: without it
onnxruntime keeps a convolution inside an `If` whose weights live outside in the slow plain layout. Constant padding is
written into the `pads` of the convolution behind it, never as a Pad node.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from builder.elastify.trace import module_of, shape_of
from builder.errors import BuildError
from builder.onnx_writer import GraphWriter

__all__ = ["lower", "lower_many"]

Pads = tuple[int, int, int, int]
"""Top, left, bottom, right."""


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
        module: A traced module; any other one stands for the identity of its one input.
        prefix: What the names of its nodes and weights begin with.
        inputs: One value for each placeholder, in order.

    Returns:
        One name for each tensor that the module returns, in order, nested tuples and lists flattened.

    Raises:
        BuildError: an operation has no translation, with its name.
    """
    if not isinstance(module, fx.GraphModule):
        return [writer.node("Identity", inputs, f"{prefix}.identity")]
    return _Lowering(writer, module, prefix).run(inputs)


class _Lowering:
    """One pass over the nodes of a traced module."""

    def __init__(self, writer: GraphWriter, module: fx.GraphModule, prefix: str) -> None:
        self._writer, self._module, self._prefix = writer, module, prefix
        self._values: dict[fx.Node, str] = {}
        self._pads: dict[fx.Node, Pads] = {}

    def run(self, inputs: Sequence[str]) -> list[str]:
        given = iter(inputs)
        for node in self._module.graph.nodes:
            if node.op == "placeholder":
                self._values[node] = next(given)
            elif node.op == "output":
                return [self._values[source] for source in node.all_input_nodes]
            elif shape_of(node) or node.op == "call_module":
                self._values[node] = self._lower(node)
        raise BuildError("the traced module has no output")

    def _lower(self, node: fx.Node) -> str:
        module = module_of(self._module, node)
        handler: Callable[[fx.Node, Any], str] | None
        handler = _MODULES.get(type(module)) if module is not None else _FUNCTIONS.get(_function_name(node))
        if handler is None:
            what = type(module).__name__ if module is not None else _function_name(node)
            raise BuildError(f"{what} at {node.name!r} cannot be exported yet", hint="replace it before elastifying")
        return handler(self, node, module) if module is not None else handler(self, node)

    def _input(self, node: fx.Node, index: int = 0) -> str:
        return self._values[node.all_input_nodes[index]]

    def _emit(self, op: str, inputs: list[str], node: fx.Node, attributes: dict[str, Any] | None = None) -> str:
        return self._writer.node(op, inputs, f"{self._prefix}.{node.name}", attributes)

    def _weight(self, node: fx.Node, part: str, values: torch.Tensor | npt.NDArray[np.float32]) -> str:
        array = values.detach().numpy() if isinstance(values, torch.Tensor) else values
        return self._writer.initializer(f"{self._prefix}.{node.target}.{part}", array.astype(np.float32))

    def conv(self, node: fx.Node, conv: nn.Conv2d) -> str:
        source = node.all_input_nodes[0]
        extra = self._pads.get(source, (0, 0, 0, 0))
        top, left = _symmetric(conv)
        attributes = {
            "kernel_shape": list(conv.kernel_size),
            "strides": list(conv.stride),
            "dilations": list(conv.dilation),
            "group": conv.groups,
            "pads": [extra[0] + top, extra[1] + left, extra[2] + top, extra[3] + left],
        }
        inputs = [self._values[source], self._weight(node, "weight", conv.weight)]
        if conv.bias is not None:
            inputs.append(self._weight(node, "bias", conv.bias))
        out = self._emit("Conv", inputs, node, attributes)
        users = [module_of(self._module, user) for user in node.users]
        return out if len(users) == 1 and isinstance(users[0], nn.BatchNorm2d) else self._identity_norm(node, conv, out)

    def _identity_norm(self, node: fx.Node, conv: nn.Conv2d, out: str) -> str:
        ones, zeros = np.ones(conv.out_channels, np.float32), np.zeros(conv.out_channels, np.float32)
        parts = (("scale", ones), ("shift", zeros), ("mean", zeros), ("var", ones))
        names = [self._weight(node, f"identity.{part}", values) for part, values in parts]
        inputs = [out, *names]
        return self._writer.node("BatchNormalization", inputs, f"{self._prefix}.{node.name}.bn", {"epsilon": 0.0})

    def norm(self, node: fx.Node, norm: nn.BatchNorm2d) -> str:
        ones = torch.ones_like(norm.running_var)
        parts = {
            "scale": ones if norm.weight is None else norm.weight,
            "shift": torch.zeros_like(ones) if norm.bias is None else norm.bias,
            "mean": norm.running_mean,
            "var": norm.running_var,
        }
        names = [self._weight(node, part, values) for part, values in parts.items()]
        return self._emit("BatchNormalization", [self._input(node), *names], node, {"epsilon": norm.eps})

    def linear(self, node: fx.Node, linear: nn.Linear) -> str:
        inputs = [self._input(node), self._weight(node, "weight", linear.weight)]
        if linear.bias is not None:
            inputs.append(self._weight(node, "bias", linear.bias))
        return self._emit("Gemm", inputs, node, {"transB": 1})

    def clip6(self, node: fx.Node, _: object = None) -> str:
        low = self._writer.initializer("clip_low", np.array(0, np.float32))
        high = self._writer.initializer("clip_high", np.array(6, np.float32))
        return self._emit("Clip", [self._input(node), low, high], node)

    def hard_sigmoid(self, node: fx.Node, _: object = None) -> str:
        return self._emit("HardSigmoid", [self._input(node)], node, {"alpha": 1 / 6, "beta": 0.5})

    def silu(self, node: fx.Node, _: object = None) -> str:
        gate = self._writer.node("Sigmoid", [self._input(node)], f"{self._prefix}.{node.name}.sigmoid")
        return self._emit("Mul", [self._input(node), gate], node)

    def plain(self, op: str) -> Callable[[fx.Node], str]:
        return lambda node: self._emit(op, [self._values[i] for i in node.all_input_nodes], node)

    def binary(self, op: str, node: fx.Node) -> str:
        operands = [value for value in node.args if isinstance(value, fx.Node)]
        if len(operands) != 2 or node.kwargs:
            raise BuildError(f"{node.name!r} is not a plain {op} of two tensors; it cannot be exported yet")
        return self._emit(op, [self._values[value] for value in operands], node)

    def pool(self, node: fx.Node, pool: nn.MaxPool2d | nn.AvgPool2d) -> str:
        if pool.ceil_mode or getattr(pool, "dilation", 1) not in (1, (1, 1)):
            raise BuildError(f"pooling at {node.name!r} with ceil_mode or dilation cannot be exported yet")
        pads = _pair(pool.padding)
        attributes = {
            "kernel_shape": list(_pair(pool.kernel_size)),
            "strides": list(_pair(pool.stride)),
            "pads": [*pads, *pads],
        }
        if isinstance(pool, nn.AvgPool2d):
            attributes["count_include_pad"] = int(pool.count_include_pad)
        return self._emit(
            "MaxPool" if isinstance(pool, nn.MaxPool2d) else "AveragePool", [self._input(node)], node, attributes
        )

    def global_pool(self, node: fx.Node, _: object = None) -> str:
        out = self._emit("GlobalAveragePool", [self._input(node)], node)
        shape, source = shape_of(node), shape_of(node.all_input_nodes[0])
        if len(source) != 4 or shape not in ((*source[:2], 1, 1), source[:2]):
            raise BuildError(f"{node.name!r} averages {source} to {shape}; only global pooling can be exported yet")
        return (
            out
            if len(shape) == 4
            else self._writer.node("Flatten", [out], f"{self._prefix}.{node.name}.flat", {"axis": 1})
        )

    def flatten(self, node: fx.Node, _: object = None) -> str:
        if len(shape_of(node)) != 2:
            raise BuildError(f"{node.name!r} reshapes to {shape_of(node)}; only flattening to [N, C] can be exported")
        return self._emit("Flatten", [self._values[node.all_input_nodes[0]]], node, {"axis": 1})

    def pad(self, node: fx.Node, module: nn.ZeroPad2d | None = None) -> str:
        pads = tuple(module.padding) if module is not None else tuple(node.args[1])
        value = node.kwargs.get("value") or (node.args[3] if len(node.args) > 3 else 0)
        mode = node.kwargs.get("mode", node.args[2] if len(node.args) > 2 else "constant")
        consumers = [module_of(self._module, user) for user in node.users]
        if value or mode != "constant" or len(pads) != 4 or not all(isinstance(c, nn.Conv2d) for c in consumers):
            raise BuildError(f"padding at {node.name!r} is not zeros in front of a convolution; it cannot be exported")
        left, right, top, bottom = pads
        self._pads[node] = (top, left, bottom, right)
        return self._input(node)


def _symmetric(conv: nn.Conv2d) -> tuple[int, int]:
    if isinstance(conv.padding, str):
        if conv.padding == "valid":
            return 0, 0
        raise BuildError("convolutions with padding='same' cannot be exported", hint="write the padding as numbers")
    if conv.padding_mode != "zeros":
        raise BuildError(f"padding mode {conv.padding_mode!r} cannot be exported", hint="use zeros")
    return conv.padding[0], conv.padding[1]


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value, value)


def _function_name(node: fx.Node) -> str:
    name = getattr(node.target, "__name__", None) or str(node.target)
    return {operator.iadd: "add", operator.imul: "mul"}.get(node.target, name).strip("_")


def _plain(op: str) -> Callable[..., str]:
    return lambda lowering, node, module=None: lowering.plain(op)(node)


_MODULES: dict[type[nn.Module], Callable[..., str]] = {
    nn.Conv2d: _Lowering.conv,
    nn.BatchNorm2d: _Lowering.norm,
    nn.Linear: _Lowering.linear,
    nn.ReLU: _plain("Relu"),
    nn.ReLU6: _Lowering.clip6,
    nn.Sigmoid: _plain("Sigmoid"),
    nn.SiLU: _Lowering.silu,
    nn.Hardswish: _plain("HardSwish"),
    nn.Hardsigmoid: _Lowering.hard_sigmoid,
    nn.MaxPool2d: _Lowering.pool,
    nn.AvgPool2d: _Lowering.pool,
    nn.AdaptiveAvgPool2d: _Lowering.global_pool,
    nn.Flatten: _Lowering.flatten,
    nn.ZeroPad2d: _Lowering.pad,
}

_FUNCTIONS: dict[str, Callable[..., str]] = {
    "relu": _plain("Relu"),
    "relu6": _Lowering.clip6,
    "sigmoid": _plain("Sigmoid"),
    "silu": _Lowering.silu,
    "hardswish": _plain("HardSwish"),
    "hardsigmoid": _Lowering.hard_sigmoid,
    "add": lambda lowering, node: lowering.binary("Add", node),
    "mul": lambda lowering, node: lowering.binary("Mul", node),
    "mean": _Lowering.global_pool,
    "adaptive_avg_pool2d": _Lowering.global_pool,
    "flatten": _Lowering.flatten,
    "view": _Lowering.flatten,
    "reshape": _Lowering.flatten,
    "pad": _Lowering.pad,
}

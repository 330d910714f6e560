"""Trace with torch.export, and raise its operators to the modules and functions that the rest of the builder reads.

torch.export follows control flow on shapes, but knows ATen operators only: a convolution is a function of a weight.
Here each becomes the `nn` module that holds the weight, or the function of the same meaning.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody reads
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_unflatten

__all__ = ["trace_exported"]


def trace_exported(model: nn.Module, examples: tuple[Tensor, ...]) -> fx.GraphModule:
    """The graph of `model` (in eval mode) with the batch free; raises what torch.export raises."""
    # Before torch 2.6 a free dimension has to be declared, later it can be found out.
    free = getattr(torch.export.Dim, "AUTO", None) or torch.export.Dim("batch")
    program = torch.export.export(model, examples, dynamic_shapes=_free_batches(model, examples, free))
    traced = program.module()
    _drop_guards(traced)
    for node in list(traced.graph.nodes):
        if node.op == "call_function":
            _raise(traced, node)
    traced.graph.set_codegen(fx.graph.CodeGen())  # a flat call, not the nested one that torch.export wraps around it
    output = next(node for node in traced.graph.nodes if node.op == "output")
    output.args = (tree_unflatten(list(output.args[0]), program.call_spec.out_spec),)
    traced.graph.eliminate_dead_code()
    return fx.GraphModule(traced, traced.graph)


def _free_batches(model: nn.Module, examples: tuple[Tensor, ...], free: object) -> dict[str, dict[int, object]]:
    """By name of the argument: its first dimension is free."""
    names = list(inspect.signature(model.forward).parameters)
    return {name: {0: free} for name, _ in zip(names, examples, strict=False)}


def _drop_guards(traced: fx.GraphModule) -> None:
    """Checks of the example's sizes; the shapes are settled by our own pass."""
    for node in reversed(list(traced.graph.nodes)):
        checks = node.op == "call_module" and str(node.target) == "_guards_fn"
        if checks or "assert" in str(node.target) or "sym_constrain" in str(node.target):
            traced.graph.erase_node(node)


def _raise(traced: fx.GraphModule, node: fx.Node) -> None:
    name = str(getattr(node.target, "_schema", node.target)).split("(")[0].removeprefix("aten::").split(".")[0]
    arguments = _arguments(node)
    make_module = _MODULES.get(name)
    if make_module is not None:
        module = make_module(lambda key: _tensor(traced, arguments.get(key)), arguments)
        if module is not None:
            label = f"{name}_{node.name}"
            traced.add_submodule(label, module.eval())
            node.op, node.target, node.args, node.kwargs = "call_module", label, (arguments["input"],), {}
        return
    function = _FUNCTIONS.get(name)
    if function is not None:
        node.target, node.args, node.kwargs = function(arguments)


def _arguments(node: fx.Node) -> dict[str, Any]:
    """All arguments by the name that the operator's schema gives them."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {}
    given = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    return defaults | given


def _tensor(traced: fx.GraphModule, value: object) -> Any:
    """The parameter or buffer behind a constant node; None where there is none."""
    if isinstance(value, fx.Node) and value.op == "get_attr":
        return operator.attrgetter(str(value.target))(traced)
    return None


Getter = Callable[[str], Any]


def _conv(get: Getter, a: dict[str, Any]) -> nn.Module | None:
    weight, bias = get("weight"), get("bias")
    if weight is None:
        return None
    inputs, outputs = weight.shape[1] * a["groups"], weight.shape[0]
    conv = nn.Conv2d(
        inputs,
        outputs,
        tuple(weight.shape[2:]),
        tuple(a["stride"]),
        a["padding"] if isinstance(a["padding"], str) else tuple(a["padding"]),
        tuple(a["dilation"]),
        a["groups"],
        bias is not None,
    )
    conv.weight, conv.bias = weight, bias
    return conv


def _batch_norm(get: Getter, a: dict[str, Any]) -> nn.Module | None:
    mean, variance, weight = get("running_mean"), get("running_var"), get("weight")
    if mean is None or a["training"]:
        return None
    norm = nn.BatchNorm2d(len(mean), a["eps"], a["momentum"], affine=weight is not None)
    norm.running_mean, norm.running_var = mean, variance
    if weight is not None:
        norm.weight, norm.bias = weight, get("bias")
    return norm


def _linear(get: Getter, a: dict[str, Any]) -> nn.Module | None:
    weight, bias = get("weight"), get("bias")
    if weight is None:
        return None
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    linear.weight, linear.bias = weight, bias
    return linear


def _layer_norm(get: Getter, a: dict[str, Any]) -> nn.Module | None:
    weight, bias = get("weight"), get("bias")
    norm = nn.LayerNorm(list(a["normalized_shape"]), a["eps"], weight is not None, bias=bias is not None)
    if weight is not None:
        norm.weight, norm.bias = weight, bias
    return norm


_MODULES: dict[str, Callable[[Getter, dict[str, Any]], nn.Module | None]] = {
    "conv2d": _conv,
    "batch_norm": _batch_norm,
    "linear": _linear,
    "layer_norm": _layer_norm,
}

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def _unary(function: Callable[..., Any], *keys: str) -> Callable[[dict[str, Any]], Call]:
    """A call of the input and of the arguments `keys`, in that order."""
    return lambda a: (function, (a.get("self", a.get("input")), *(a[key] for key in keys)), {})


def _binary(function: Callable[..., Any]) -> Callable[[dict[str, Any]], Call]:
    def call(a: dict[str, Any]) -> Call:
        if a.get("alpha", 1) != 1:
            scaled = torch.sub if function is operator.sub else torch.add
            return scaled, (a["self"], a["other"]), {"alpha": a["alpha"]}
        return function, (a["self"], a["other"]), {}

    return call


def _hardtanh(a: dict[str, Any]) -> Call:
    if (a["min_val"], a["max_val"]) == (0, 6):
        return F.relu6, (a["self"],), {}
    return F.hardtanh, (a["self"], a["min_val"], a["max_val"]), {}


def _writing(function: Callable[[dict[str, Any]], Call]) -> Callable[[dict[str, Any]], Call]:
    def call(a: dict[str, Any]) -> Call:
        target, args, kwargs = function(a)
        return target, args, kwargs | {"inplace": True}

    return call


def _slice(a: dict[str, Any]) -> Call:
    key = (*(slice(None) for _ in range(a["dim"])), slice(a["start"], a["end"], a["step"]))
    return operator.getitem, (a["self"], key), {}


def _interpolate(mode: str) -> Callable[[dict[str, Any]], Call]:
    def call(a: dict[str, Any]) -> Call:
        options: dict[str, Any] = {"size": a.get("output_size"), "mode": mode}
        if options["size"] is None:
            options["scale_factor"] = a.get("scale_factors")
        if mode == "bilinear":
            options["align_corners"] = a["align_corners"]
        return F.interpolate, (a["input"],), options

    return call


_FUNCTIONS: dict[str, Callable[[dict[str, Any]], Call]] = {
    **{name: _unary(function) for name, function in (("relu", torch.relu), ("sigmoid", torch.sigmoid))},
    **{name: _unary(getattr(F, name)) for name in ("silu", "hardswish", "hardsigmoid", "mish")},
    "gelu": lambda a: (F.gelu, (a["self"],), {"approximate": a["approximate"]}),
    "leaky_relu": _unary(F.leaky_relu, "negative_slope"),
    "hardtanh": _hardtanh,
    "tanh": _unary(torch.tanh),
    "clamp": _unary(torch.clamp, "min", "max"),
    "add": _binary(operator.add),
    "sub": _binary(operator.sub),
    "mul": _binary(operator.mul),
    "div": _binary(operator.truediv),
    "cat": lambda a: (torch.cat, (a["tensors"], a["dim"]), {}),
    "mean": lambda a: (torch.mean, (a["self"], a["dim"], a["keepdim"]), {}),
    "adaptive_avg_pool2d": _unary(F.adaptive_avg_pool2d, "output_size"),
    "max_pool2d": _unary(F.max_pool2d, "kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "avg_pool2d": _unary(F.avg_pool2d, "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"),
    "view": _unary(torch.reshape, "size"),
    "reshape": _unary(torch.reshape, "shape"),
    "flatten": _unary(torch.flatten, "start_dim", "end_dim"),
    "permute": _unary(torch.permute, "dims"),
    "transpose": _unary(torch.transpose, "dim0", "dim1"),
    "unsqueeze": _unary(torch.unsqueeze, "dim"),
    "chunk": _unary(torch.chunk, "chunks", "dim"),
    "split": _unary(torch.split, "split_size", "dim"),
    "split_with_sizes": _unary(torch.split, "split_sizes", "dim"),
    "slice": _slice,
    "softmax": _unary(torch.softmax, "dim"),
    "pad": _unary(F.pad, "pad", "mode", "value"),
    "dropout": lambda a: (F.dropout, (a["input"], a["p"], False), {}),
    "upsample_nearest2d": _interpolate("nearest"),
    "upsample_bilinear2d": _interpolate("bilinear"),
}
# What writes into its input stays so: `purify` turns it plain and mends who reads that input afterwards.
_FUNCTIONS |= {f"{name}_": _writing(_FUNCTIONS[name]) for name in ("silu", "hardswish", "hardtanh", "leaky_relu")}
_FUNCTIONS |= {"relu_": _unary(torch.relu_), "add_": _binary(operator.iadd), "mul_": _binary(operator.imul)}

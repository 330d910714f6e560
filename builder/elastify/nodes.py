"""What a node of a traced graph does, whichever way it was written: module, function, method or operator."""

from __future__ import annotations

from torch import fx, nn

__all__ = [
    "NORMS",
    "PASSING",
    "is_activation",
    "is_add",
    "is_conv",
    "is_norm",
    "is_padding",
    "module_of",
    "op_name",
    "pair",
    "shape_of",
    "tensor_inputs",
]

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.LayerNorm, nn.GroupNorm)
ACTIVATIONS = frozenset(
    [
        "ReLU",
        "ReLU6",
        "Hardswish",
        "Hardsigmoid",
        "Sigmoid",
        "SiLU",
        "GELU",
        "LeakyReLU",
        "ELU",
        "PReLU",
        "Hardtanh",
        "Mish",
        "Softplus",
        "Tanh",
        "SELU",
        "CELU",
        "relu",
        "relu6",
        "hardswish",
        "hardsigmoid",
        "sigmoid",
        "silu",
        "gelu",
        "leaky_relu",
        "elu",
        "hardtanh",
        "mish",
        "softplus",
        "tanh",
        "clamp",
        "clip",
    ]
)
"""Element-wise non-linearities of one value, by the name of their module, function or method."""

PASSING = frozenset(
    [
        "MaxPool2d",
        "AvgPool2d",
        "AdaptiveAvgPool2d",
        "AdaptiveMaxPool2d",
        "ZeroPad2d",
        "Upsample",
        "UpsamplingNearest2d",
        "UpsamplingBilinear2d",
        "max_pool2d",
        "avg_pool2d",
        "adaptive_avg_pool2d",
        "adaptive_max_pool2d",
        "pad",
        "interpolate",
        "contiguous",
        "clone",
        "Dropout",
        "Dropout2d",
        "Identity",
        "dropout",
    ]
)
"""Operations that treat each channel of an image by itself and keep their order."""

_OPERATORS = {"iadd": "add", "imul": "mul", "isub": "sub", "div": "truediv", "itruediv": "truediv"}


def module_of(graph_module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that `node` calls, None for functions and methods."""
    return graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape that shape propagation saw at `node`, batch included; empty where it is not a tensor."""
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if meta is not None and hasattr(meta, "shape") else ()


def op_name(graph_module: fx.GraphModule, node: fx.Node) -> str:
    """Class of the called module, or the plain name of the function or method: ``Conv2d``, ``add``, ``view``."""
    module = module_of(graph_module, node)
    if module is not None:
        return type(module).__name__
    name = str(getattr(node.target, "__name__", node.target)).strip("_")
    return _OPERATORS.get(name, name)


def tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """Inputs that the network computes; constants and parameters are left out."""
    return [source for source in node.all_input_nodes if source.op != "get_attr"]


def is_activation(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` is an element-wise non-linearity of one input."""
    called = node.op in ("call_module", "call_function", "call_method")
    return called and op_name(graph_module, node) in ACTIVATIONS and len(tensor_inputs(node)) == 1


def is_norm(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` is a normalisation layer."""
    return isinstance(module_of(graph_module, node), NORMS)


def is_conv(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` is a two-dimensional convolution."""
    return isinstance(module_of(graph_module, node), nn.Conv2d)


def is_add(node: fx.Node) -> bool:
    """Whether `node` adds two values of the graph."""
    name = str(getattr(node.target, "__name__", node.target)).strip("_")
    called = node.op in ("call_function", "call_method") and name in ("add", "iadd")
    return called and len(tensor_inputs(node)) == 2


def is_padding(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` only pads for the convolution behind it."""
    return node.op.startswith("call_") and op_name(graph_module, node) in ("pad", "ZeroPad2d")


def pair(value: int | tuple[int, ...] | list[int]) -> tuple[int, int]:
    """Height and width of what torch takes as one number, a list of one, or a list of two."""
    if isinstance(value, int):
        return value, value
    sides = tuple(value)
    return (sides[0], sides[0]) if len(sides) == 1 else (sides[0], sides[1])

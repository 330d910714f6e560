"""The table of translations: a function of torch by name, and what writes its nodes."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

__all__ = ["Translation", "function_name", "is_in_place", "translates", "translation_of"]

_ATEN = "aten."
_OPERATORS = {
    operator.iadd: "add",
    operator.isub: "sub",
    operator.imul: "mul",
    operator.itruediv: "div",
    operator.truediv: "div",
    operator.matmul: "matmul",
}
_TABLE: dict[str, Translation] = {}


@dataclass(frozen=True, slots=True)
class Translation:
    """How one function becomes nodes."""

    write: Callable[..., Any]
    """Takes the lowering, then the arguments of torch's function; activations as `Value`, constants as `Weight`."""

    signature: inspect.Signature
    """Of `write`."""

    takes_pads: bool
    """Whether it deals with zeros that its input still lacks."""


def translates(*names: str, takes_pads: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter the decorated function for torch's functions of these names.

    It is called as ``write(lowering, *args, **kwargs)`` with the arguments of torch's function, and gives the name of
    the value, a `Value`, or a list with a name for each part of a tuple, None for a part that nothing reads.
    """

    def enter(write: Callable[..., Any]) -> Callable[..., Any]:
        entry = Translation(write, inspect.signature(write), takes_pads)
        _TABLE.update(dict.fromkeys(names, entry))
        return write

    return enter


def function_name(node: fx.Node) -> str:
    """Which function a call is of, whatever it is spelled as: ``add`` for ``+``, ``torch.add``, ``.add_``, aten's add.

    An aten operator whose arguments come in another order than those of the function keeps its prefix ``aten.``.
    """
    if node.op == "call_method":
        return str(node.target).rstrip("_")
    if isinstance(node.target, torch._ops.OpOverload):
        name = node.target._schema.name.partition("::")[2].rstrip("_")
        return f"{_ATEN}{name}" if f"{_ATEN}{name}" in _TABLE else name.lstrip("_")
    name = _OPERATORS.get(node.target) or getattr(node.target, "__name__", str(node.target))
    return name.strip("_")


def is_in_place(node: fx.Node) -> bool:
    """Whether a function or method is one that writes into its first argument by its very name."""
    if node.op == "call_method":
        name = str(node.target)
    elif isinstance(node.target, torch._ops.OpOverload):
        name = node.target._schema.name
    else:
        name = getattr(node.target, "__name__", "")
    return name.endswith("_") and not name.endswith("__")


def translation_of(name: str) -> Translation | None:
    """The translation of a function by its name from `function_name`."""
    return _TABLE.get(name)

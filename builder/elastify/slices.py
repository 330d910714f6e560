"""Splits, slices and axis orders of traced values, read from their nodes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from builder.elastify.nodes import op_name, shape_of, tensor_inputs

__all__ = ["Picked", "axis_order", "is_split", "picked_range", "split_axis", "split_sizes"]

_SPLITS = ("split", "chunk", "split_with_sizes")


@dataclass(frozen=True, slots=True)
class Picked:
    """A range of a value along one axis."""

    source: fx.Node
    """The value that it is taken from."""

    axis: int
    start: int
    stop: int


def is_split(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` takes a value apart into a tuple of ranges."""
    return node.op in ("call_function", "call_method") and op_name(module, node) in _SPLITS


def split_axis(node: fx.Node, place: int) -> int:
    """The axis that a split or a concatenation works along, counted from the front; argument number `place`."""
    axis = node.kwargs.get("dim", node.kwargs.get("axis", node.args[place] if len(node.args) > place else 0))
    shape = shape_of(node) or shape_of(tensor_inputs(node)[0])
    return int(axis) % len(shape) if isinstance(axis, int) else -1


def split_sizes(node: fx.Node, axis: int) -> list[int]:
    """Length of each piece of a split along its axis, as shape propagation saw them."""
    return [int(piece.shape[axis]) for piece in node.meta["tensor_meta"]]


def picked_range(module: fx.GraphModule, node: fx.Node) -> Picked | None:
    """What a piece of a split or a slice with numbers is a range of; None for anything else."""
    if node.op != "call_function" or op_name(module, node) != "getitem" or not isinstance(node.args[0], fx.Node):
        return None
    source, key = node.args[0], node.args[1]
    if is_split(module, source) and isinstance(key, int):
        axis = split_axis(source, 2)
        sizes = split_sizes(source, axis)
        key %= len(sizes)
        return Picked(tensor_inputs(source)[0], axis, sum(sizes[:key]), sum(sizes[: key + 1]))
    return _sliced(source, key) if shape_of(source) and isinstance(key, tuple) else None


def _sliced(source: fx.Node, key: tuple[object, ...]) -> Picked | None:
    """A key like ``[:, 3:7]``: whole axes but one, which has two numbers and no step."""
    if not all(isinstance(item, slice) and item.step in (None, 1) for item in key):
        return None
    cut = [axis for axis, item in enumerate(key) if (item.start, item.stop) != (None, None)]
    if len(cut) != 1 or any(isinstance(end, fx.Node) for end in (key[cut[0]].start, key[cut[0]].stop)):
        return None
    start, stop, _ = key[cut[0]].indices(shape_of(source)[cut[0]])
    return Picked(source, cut[0], start, stop) if stop > start else None


def axis_order(node: fx.Node, name: str, rank: int) -> list[int]:
    """The axes of the input of a permute or transpose in the order of the output; empty where they are no numbers."""
    numbers = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], (list, tuple)) else node.args[1:]
    if not numbers or not all(isinstance(number, int) for number in numbers):
        return []
    axes = [int(number) % rank for number in numbers]
    if name == "permute":
        return axes
    order = list(range(rank))
    order[axes[0]], order[axes[1]] = order[axes[1]], order[axes[0]]
    return order

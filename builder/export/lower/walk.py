"""One pass over the nodes of a traced module: their arguments, constants and names, and errors that say where."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from builder.elastify.trace import module_of
from builder.errors import BuildError
from builder.export.lower import activations, arithmetic, convolution, int8, layout, norms, pooling, resize
from builder.export.lower.modules import call_of
from builder.export.lower.shapes import read_shapes
from builder.export.lower.table import function_name, is_in_place, translation_of
from builder.export.lower.values import NO_PADS, Shape, Value, Weight
from builder.onnx_writer import GraphWriter

__all__ = ["Lowering"]

TRANSLATIONS = (activations, arithmetic, convolution, int8, layout, norms, pooling, resize)
"""The rooms that enter themselves into the table when they are imported."""

MAX_RANK = 6


class Lowering:
    """Translates one module. The translations write their nodes through `emit`, `store`, `scalar` and `integers`."""

    def __init__(self, writer: GraphWriter, module: fx.GraphModule, prefix: str) -> None:
        self._writer, self._module, self._prefix = writer, module, prefix
        self._values: dict[fx.Node, Any] = {}
        self._shapes: dict[fx.Node, Any] = {}
        self._batch = 0
        self.node: fx.Node = next(iter(module.graph.nodes))
        """The node that is being translated."""

    def run(self, inputs: Sequence[str]) -> list[str]:
        """Translate everything; see `lower_many`."""
        nodes = list(self._module.graph.nodes)
        placeholders = [node for node in nodes if node.op == "placeholder"]
        if len(placeholders) != len(inputs):
            raise BuildError(f"{self._prefix!r} takes {len(placeholders)} inputs, not {len(inputs)}")
        self._shapes = read_shapes(self._module)
        self._batch = self._shapes[placeholders[0]].shape[0]
        for node, name in zip(placeholders, inputs, strict=True):
            self.node = node
            self._values[node] = Value(name, self._with_batch(self._shapes[node]))
        for node in nodes:
            self.node = node
            if node.op == "output":
                return self._deliver(inputs)
            if node.op == "get_attr":
                self._values[node] = _constant(self._module, node)
            elif is_in_place(node) and len(node.all_input_nodes[0].users) > 1:
                raise self.refusal("writes into a value that others read", "use the form that gives a new tensor")
            elif node in self._shapes and node not in self._values:
                self._values[node] = self._translated()
        raise BuildError(f"{self._prefix!r} is traced to a graph without an output")

    @property
    def shape(self) -> Shape:
        """Shape of what the current node gives."""
        return tuple(self._shapes[self.node].shape)

    def parts(self) -> list[Shape | None]:
        """Shapes of what the current node gives as a tuple; None for a part that nothing reads."""
        users = [user for user in self.node.users if user.users or user.op == "output"]
        read = [user.args[1] if function_name(user) == "getitem" else None for user in users]
        every = not all(isinstance(index, int) for index in read)
        shapes = [tuple(part.shape) for part in self._shapes[self.node]]
        return [shape if every or index in read else None for index, shape in enumerate(shapes)]

    def lengths(self, axis: int) -> list[int]:
        """How long the parts of what the current node gives are along an axis."""
        return [part.shape[axis] for part in self._shapes[self.node]]

    def only_reader_is(self, *functions: str) -> bool:
        """Whether one node reads the current one, and is a call of one of these functions."""
        users = list(self.node.users)
        return len(users) == 1 and self._called(users[0]) in functions

    def emit(self, op: str, inputs: Sequence[str], attributes: dict[str, Any] | None = None, *, part: str = "") -> str:
        """Append a node named after the current one, with `part` behind it; the name of its output."""
        name = f"{self._prefix}.{self.node.name}" + (f".{part}" if part else "")
        return self._writer.node(op, inputs, name, attributes)

    def store(self, weight: Any, part: str = "") -> str:
        """The initializer of a `Weight` as float32, or of an array for this node under the name `part`."""
        if not isinstance(weight, Weight):
            return self._writer.initializer(f"{self._prefix}.{self.node.name}.{part}", _float32(weight))
        return self._writer.initializer(f"{self._prefix}.{weight.label}", _float32(weight.tensor))

    def store_whole(self, weight: Weight) -> str:
        """The initializer of a `Weight` of whole numbers, in its own type."""
        return self._writer.initializer(f"{self._prefix}.{weight.label}", weight.tensor.numpy())

    def whole(self, value: int, dtype: str) -> str:
        """A constant of an integer type, e.g. ``uint8``."""
        return self._writer.initializer(f"{dtype}_{value}", np.array(value, dtype))

    def scalar(self, value: float) -> str:
        """A float32 constant."""
        if not np.isfinite(np.float32(value)):
            raise self.refusal(f"uses the number {value}")
        return self._writer.initializer(f"float_{float(value)!r}", np.array(value, np.float32))

    def integers(self, values: Sequence[int]) -> str:
        """An int64 vector."""
        return self._writer.initializer("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def padded(self, value: Value) -> Value:
        """`value` with the zeros that it lacks put around it, by a node if there are any."""
        if value.pads == NO_PADS:
            return value
        top, left, bottom, right = value.pads
        pads = self.integers([0, 0, top, left, 0, 0, bottom, right])
        return Value(self.emit("Pad", [value.name, pads], part="zeros"), value.shape)

    def refusal(self, reason: str, hint: str = "write that part in another way before elastifying") -> BuildError:
        """The error that says why the current node cannot be exported; to be raised."""
        return BuildError(f"{self._called(self.node)} at {self.node.name!r} cannot be exported: it {reason}", hint=hint)

    def _called(self, node: fx.Node) -> str:
        """The function that a node computes; the type of a module that is not known."""
        module = module_of(self._module, node)
        if module is None:
            return function_name(node)
        call = call_of(module, str(node.target))
        return call[0] if call else type(module).__name__

    def _translated(self) -> Any:
        """What stands for the current node: a value, a constant, a number, or a list of those."""
        module, result = module_of(self._module, self.node), self._shapes[self.node]
        args, kwargs = (
            fx.node.map_arg(given, self._values.__getitem__) for given in (self.node.args, self.node.kwargs)
        )
        if module is not None:
            call = call_of(module, str(self.node.target))
            if call is None:
                raise self._unknown(type(module).__name__)
            return self._written(call[0], args, {**call[1], **kwargs})
        if not _holds(result, torch.Tensor):
            return result
        if not _holds((args, kwargs), Value):
            return self._folded(args, kwargs)
        return self._written(function_name(self.node), args, dict(kwargs))

    def _folded(self, args: Any, kwargs: Any) -> Any:
        """The result of a function of constants alone."""
        args, kwargs = (fx.node.map_aggregate(each, _tensor) for each in (args, kwargs))
        with torch.no_grad():
            if self.node.op == "call_method":
                made = getattr(args[0], str(self.node.target))(*args[1:], **kwargs)
            else:
                made = self.node.target(*args, **kwargs)  # type: ignore[operator]
        if isinstance(made, list | tuple):
            return [_weight(f"{self.node.name}.{index}", part) for index, part in enumerate(made)]
        return _weight(self.node.name, made)

    def _written(self, function: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """The result of a translation, which gets its arguments as torch's function does."""
        translation = translation_of(function)
        if translation is None:
            raise self._unknown(function)
        for name in ("input", "self"):
            if name in kwargs:
                args = (kwargs.pop(name), *args)
        if not translation.takes_pads:
            args, kwargs = (fx.node.map_aggregate(each, self._complete) for each in (args, kwargs))
        try:
            bound = translation.signature.bind(self, *args, **kwargs)
        except TypeError as error:
            raise self.refusal(f"has arguments that are not known ({error})") from error
        for name, given in bound.arguments.items():
            self._check_kind(str(translation.signature.parameters[name].annotation), given)
        return self._checked(translation.write(*bound.args, **bound.kwargs), self._shapes[self.node])

    def _check_kind(self, annotation: str, given: Any) -> None:
        """Whether an activation or a constant is there where a translation wants one."""
        if annotation == "Value" and not isinstance(given, Value):
            raise self.refusal("works on something that does not depend on the input")
        if annotation.startswith("Weight") and given is not None and not isinstance(given, Weight):
            raise self.refusal("has a weight that is computed from the input", "use a constant there")

    def _checked(self, made: Any, result: Any) -> Any:
        """What a translation gave, as values whose shapes keep the batch first."""
        if isinstance(made, str):
            return Value(made, self._with_batch(result))
        if isinstance(made, list | tuple):
            return [self._checked(each, part) for each, part in zip(made, result, strict=True)]
        return made

    def _with_batch(self, result: torch.Tensor) -> Shape:
        shape = tuple(result.shape)
        if not 2 <= len(shape) <= MAX_RANK or shape[0] != self._batch:
            raise self.refusal(f"gives a tensor of the shape {shape}", f"keep the batch of {self._batch} in front")
        if result.dtype != torch.float32:
            raise self.refusal(f"gives {result.dtype}", "compute in float32")
        return shape

    def _complete(self, value: Any) -> Any:
        return self.padded(value) if isinstance(value, Value) else value

    def _deliver(self, inputs: Sequence[str]) -> list[str]:
        """The names of what the module returns, each made by a node of this module and named once."""
        taken, names = set(inputs), []
        for value in _flat(fx.node.map_arg(self.node.args[0], self._values.__getitem__)):
            if not isinstance(value, Value):
                raise self.refusal("returns something that does not depend on the input")
            name = self._complete(value).name
            names.append(self.emit("Identity", [name], part="copy") if name in taken else name)
            taken.add(name)
        return names

    def _unknown(self, what: str) -> BuildError:
        return BuildError(
            f"{what} at {self.node.name!r} cannot be exported yet", hint="replace it by operations that can be"
        )


def _constant(module: fx.GraphModule, node: fx.Node) -> Any:
    value = operator.attrgetter(str(node.target))(module)
    return _weight(str(node.target), value)


def _weight(label: str, value: Any) -> Any:
    return Weight(label, value.detach()) if isinstance(value, torch.Tensor) else value


def _tensor(value: Any) -> Any:
    return value.tensor if isinstance(value, Weight) else value


def _float32(values: torch.Tensor | npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.asarray(values.numpy() if isinstance(values, torch.Tensor) else values, np.float32)


def _flat(values: Any) -> Iterator[Any]:
    """The leaves of nested lists, tuples, dictionaries and slices."""
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, slice):
        values = [values.start, values.stop, values.step]
    if isinstance(values, list | tuple):
        for each in values:
            yield from _flat(each)
    else:
        yield values


def _holds(values: Any, kind: type) -> bool:
    return any(isinstance(each, kind) for each in _flat(values))

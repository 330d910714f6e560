"""What the inputs and outputs of an exported graph are called.

One input is ``image`` and one output ``logits``. Several inputs have the names that the network's forward gives them;
several outputs are called after their place in what it returns: ``boxes``, or ``output0``, ``output1_0``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import onnx
from onnx import TensorProto, helper

from builder.elastify.segments import Program, ValueName, value_names

__all__ = ["Shapes", "graph_inputs", "graph_outputs", "tensor_info"]

Shapes = Mapping[str, tuple[int, ...]]
"""Name of a tensor to its shape without the batch, in order."""


def graph_inputs(program: Program) -> Shapes:
    """The inputs of an exported graph, without the gates."""
    names = program.inputs if len(program.inputs) > 1 else ("image",)
    return dict(zip(names, program.input_shapes, strict=True))


def graph_outputs(program: Program) -> Shapes:
    """The outputs of an exported graph, flattened in order."""
    values = value_names(program.structure)
    names = list(_places(program.structure, "")) if len(values) > 1 else ["logits"]
    return {name: program.shapes[value] for name, value in zip(names, values, strict=True)}


def tensor_info(item: tuple[str, tuple[int, ...]]) -> onnx.ValueInfoProto:
    """A float32 tensor with the batch free, for the signature of a graph."""
    name, shape = item
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])


def _places(structure: Any, path: str) -> Iterator[str]:
    """A name for each value of a structure, from the keys and numbers that lead to it."""
    if isinstance(structure, ValueName):
        yield path if path and not path[0].isdigit() else f"output{path}"
    elif isinstance(structure, Mapping):
        for key, item in structure.items():
            yield from _places(item, f"{path}_{key}" if path else str(key))
    elif isinstance(structure, (list, tuple)):
        for number, item in enumerate(structure):
            yield from _places(item, f"{path}_{number}" if path else str(number))

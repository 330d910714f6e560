"""The weights of layers of modules: of each subnet the modules that are on, gathered once and fed with every run.

They lie in the prepared folder as the bundle has them, in one mapped file. A layer whose modules are all on is fed the
mapping itself; of others there is a copy for as long as the subnet is among the last few that ran.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from edge_runtime.backends.base import Array, DamagedError
from edge_runtime.backends.onnx.passes import Lifted
from edge_runtime.backends.onnx.session import WEIGHTS_FILE
from edge_runtime.backends.onnx.values import MAX_ELEMENTS
from edge_runtime.errors import BackendError
from edge_runtime.gates import Gates

__all__ = ["ModuleInput", "ModuleWeights", "read_tensor", "write_modules"]

KEPT = 3
"""Subnets whose gathered weights stay: those that a loop swaps between."""

ALIGN_BYTES = 64

MOST = 2**48
"""Of a size or an offset."""


@dataclass(frozen=True, slots=True)
class ModuleInput:
    """Where the weight file has what one graph input is gathered from."""

    name: str
    shape: tuple[int, ...]
    """With every module on; float32."""

    axis: int
    """Along which modules are picked."""

    offset_bytes: int
    channels_offset_bytes: int
    """Of the int64 vector that has the gate entry of each element along the axis."""

    def to_json(self) -> dict[str, Any]:
        """The entry as JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> ModuleInput:
        """Inverse of `to_json`. Raises `TypeError`, `KeyError` or `ValueError` where it is no such entry."""
        shape, numbers = tuple(body["shape"]), [body[key] for key in ("axis", "offset_bytes", "channels_offset_bytes")]
        if not isinstance(body["name"], str) or not all(type(n) is int and 0 <= n <= MOST for n in (*shape, *numbers)):
            raise ValueError("an entry of the modules has no name and sizes")
        if numbers[0] >= len(shape) or not 1 <= math.prod(shape) <= MAX_ELEMENTS:
            raise ValueError("an entry of the modules has no such axis, or is too large")
        return cls(body["name"], shape, *numbers)


@dataclass(frozen=True, slots=True)
class _Gathered:
    """What one subnet is fed."""

    masks: dict[int, Array]
    """For each vector of channels, by its offset: which elements are on."""

    arrays: dict[str, Array]


class ModuleWeights:
    """Gathers the weights of the modules that gates switch on. Thread-safe.

    Args:
        path: The weight file of a prepared folder; it is mapped.
        inputs: What lies where in it.

    Raises:
        DamagedError: The file is too short.
        BackendError: It cannot be mapped.
    """

    def __init__(self, path: Path, inputs: Sequence[ModuleInput]) -> None:
        self._inputs = tuple(inputs)
        try:
            self.mapped: Array = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
            """The whole file, bytes."""
            self._whole = {i.name: _at(self.mapped, np.float32, i.offset_bytes, i.shape) for i in inputs}
            self._channels = {
                i.channels_offset_bytes: _at(
                    self.mapped, np.int64, i.channels_offset_bytes, i.shape[i.axis : i.axis + 1]
                )
                for i in inputs
            }
        except ValueError as error:
            raise DamagedError(f"the weights of the modules are cut short: {str(error)[:200]}") from error
        except OSError as error:
            raise BackendError(f"the weights of the modules cannot be mapped: {error.strerror or error}") from error
        self._kept: OrderedDict[Gates, _Gathered] = OrderedDict()
        self._lock = threading.Lock()

    def feeds(self, gates: Gates) -> Mapping[str, Array]:
        """Every module input of one subnet by name; gathered at the first call, looked up at the next ones."""
        with self._lock:
            found = self._kept.get(gates)
            if found is not None:
                self._kept.move_to_end(gates)
                return found.arrays
            last = next(reversed(self._kept.values()), _Gathered({}, {}))
        made = self._gather(gates, last)
        with self._lock:
            self._kept[gates] = made
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return made.arrays

    def _gather(self, gates: Gates, last: _Gathered) -> _Gathered:
        """The arrays of one subnet; layers that are as in `last` are shared with it."""
        vector = np.array(gates.vector(), np.int64)
        made = _Gathered({at: vector[channels] != 0 for at, channels in self._channels.items()}, {})
        for each in self._inputs:
            mask = made.masks[each.channels_offset_bytes]
            whole, former = self._whole[each.name], last.masks.get(each.channels_offset_bytes)
            if mask.all():
                made.arrays[each.name] = whole
            elif former is not None and np.array_equal(mask, former):
                made.arrays[each.name] = last.arrays[each.name]
            else:
                made.arrays[each.name] = np.compress(mask, whole, each.axis)
        return made


def write_modules(path: Path, lifted: Sequence[Lifted], weights: bytes) -> tuple[ModuleInput, ...]:
    """Write the bundle's weights, and behind them what of `lifted` lies inside the model; says what lies where."""
    places: dict[str, int] = {}
    with open(path, "wb") as stream:
        stream.write(weights)
        for tensor in (tensor for each in lifted for tensor in (each.weight, each.channels)):
            if tensor.name not in places:
                places[tensor.name] = _place(tensor, stream)
    return tuple(
        ModuleInput(i.name, tuple(i.weight.dims), i.axis, places[i.weight.name], places[i.channels.name])
        for i in lifted
    )


def _place(tensor: Any, stream: BinaryIO) -> int:
    """The offset of a tensor's values, which are appended where they are not in the bundle's weight file."""
    if tensor.data_location == tensor.EXTERNAL:
        return int(next(entry.value for entry in tensor.external_data if entry.key == "offset"))
    stream.write(bytes(-stream.tell() % ALIGN_BYTES))
    offset = stream.tell()
    stream.write(tensor.raw_data)
    return offset


def read_tensor(tensor: Any, weights: bytes | Array) -> Array:
    """The value of a TensorProto, from the weight file where it lies there; no other file is read."""
    from onnx import TensorProto, helper, numpy_helper

    if tensor.data_location != TensorProto.EXTERNAL:
        inside: Array = numpy_helper.to_array(tensor)
        return inside
    where = {entry.key: entry.value for entry in tensor.external_data}
    if where["location"] != WEIGHTS_FILE:
        raise BackendError(f"tensor {tensor.name!r} lies in {where['location']!r}")
    start = int(where.get("offset", 0))
    raw = weights[start : start + int(where["length"])]
    return np.frombuffer(raw, helper.tensor_dtype_to_np_dtype(tensor.data_type)).reshape(tuple(tensor.dims))


def _at(mapped: Array, dtype: type[np.generic], offset_bytes: int, shape: tuple[int, ...]) -> Array:
    """A view of the mapped file."""
    return np.frombuffer(mapped, dtype, math.prod(shape), offset_bytes).reshape(shape)

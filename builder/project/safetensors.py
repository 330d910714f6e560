"""Read a safetensors file: a little-endian length, a JSON header of that length, then the tensors' bytes.

After the published description of the format (safetensors 0.4). Only offsets inside the file are followed,
and nothing is run.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edge_runtime.errors import InputError

__all__ = ["read_safetensors"]

MAX_HEADER_BYTES = 100_000_000
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

MAX_ELEMENTS = 2**40
"""Of one tensor, its empty sides counted as 1."""


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Name to tensor. Raises `InputError` when the file is missing or breaks the format."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"the weights {str(path)!r} cannot be read: {error.strerror}") from error
    try:
        length = int.from_bytes(content[:8], "little")
        if len(content) < 8 or length > min(MAX_HEADER_BYTES, len(content) - 8):
            raise ValueError("its header is cut off")
        header = json.loads(content[8 : 8 + length])
        data = memoryview(content)[8 + length :]
        return {name: _tensor(name, entry, data) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is not a safetensors file: {error}", hint="save it again") from error


def _tensor(name: str, entry: dict[str, Any], data: memoryview) -> Tensor:
    dtype, shape = _DTYPES.get(entry["dtype"]), entry["shape"]
    start, stop = entry["data_offsets"]
    if dtype is None:
        raise ValueError(f"{name} has the unknown type {entry['dtype']!r}")
    if not all(type(size) is int and size >= 0 for size in (*shape, start, stop)):
        raise ValueError(f"{name} has a shape or an offset that is no number")
    wanted = math.prod(shape) * dtype.itemsize
    if not 0 <= start <= stop <= len(data) or stop - start != wanted:
        raise ValueError(f"{name} does not have the {wanted} bytes of its shape")
    if math.prod(max(size, 1) for size in shape) > MAX_ELEMENTS:  # an empty tensor may still claim any size
        raise ValueError(f"{name} has the shape {shape}")
    if wanted == 0:
        return torch.zeros(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data[start:stop]), dtype=dtype).reshape(shape)

"""From bytes to protobuf messages that mean one thing only: no unknown or unwanted field, no second encoding.

What is parsed here is parsed again by onnxruntime, so the bytes must leave no room for a different reading. Judges no
operator and no shape (`check.py`, `shapes.py`).
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from typing import Any

from edge_runtime.backends.onnx.values import MAX_COUNT, MAX_ELEMENTS, Attribute, Value
from edge_runtime.errors import BundleError

__all__ = ["check_name", "parse_model", "read_attributes", "read_branches", "read_initializer", "read_value_info"]

MAX_MODEL_BYTES = 64 * 2**20
MAX_RANK = 4
MAX_CONSTANTS = 16
WEIGHTS_FILE = "weights.bin"
_DTYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64"}
_ITEM = {name: struct.Struct(f"<{code}") for name, code in zip(_DTYPES.values(), "fBbiq", strict=True)}
_FLOAT, _INT, _STRING, _GRAPH, _INTS = 1, 2, 3, 5, 7
_SCALARS = (str, bytes, int, float)
_NAME = re.compile(r"[!#-\[\]-~]{1,200}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,11}")
_FIELDS = {
    "ModelProto": "ir_version opset_import producer_name producer_version graph",
    "OperatorSetIdProto": "domain version",
    "GraphProto": "node name initializer input output",
    "NodeProto": "input output name op_type domain attribute",
    "AttributeProto": "name type i f s ints g",
    "TensorProto": "dims data_type name raw_data external_data data_location",
    "StringStringEntryProto": "key value",
    "ValueInfoProto": "name type",
    "TypeProto": "tensor_type",
    "Tensor": "elem_type shape",
    "TensorShapeProto": "dim",
    "Dimension": "dim_value dim_param",
}
_ALLOWED = {message: frozenset(fields.split()) for message, fields in _FIELDS.items()}


def parse_model(data: bytes) -> Any:
    """The ModelProto in `data`. Raises `BundleError` where a field is there that the format does not use.

    Functions, sparse tensors, constants, training information, typed data and metadata are such fields.
    """
    if len(data) > MAX_MODEL_BYTES:
        raise BundleError(f"model.onnx has {len(data)} bytes, more than {MAX_MODEL_BYTES}")
    model = _decode(data)
    _check_fields(model)
    canonical = model.SerializeToString(deterministic=True)
    model.DiscardUnknownFields()
    if canonical != data or model.ByteSize() != len(data):
        raise BundleError("model.onnx has unknown fields or is not in canonical encoding", hint="export it again")
    return model


def check_name(name: str, what: str) -> str:
    """`name`, which must be 1 to 200 ASCII characters without spaces, quotes and backslashes."""
    if not _NAME.fullmatch(name):
        raise BundleError(f"the graph has {what} named {name[:60]!r}", hint="names are 1 to 200 ASCII characters")
    return name


def read_initializer(tensor: Any, weights: bytes) -> Value:
    """Type and shape of an initializer whose data is exactly there; small integers and scalars with their values."""
    what = f"initializer {check_name(tensor.name, 'an initializer')!r}"
    dtype, shape = _DTYPES.get(tensor.data_type), tuple(tensor.dims)
    if dtype is None:
        raise BundleError(f"{what} has the data type {tensor.data_type}, not one of {', '.join(_DTYPES.values())}")
    if len(shape) > MAX_RANK or any(d < 1 for d in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise BundleError(f"{what} has the shape {shape}, which is not allowed")
    wanted = math.prod(shape) * _ITEM[dtype].size
    outside = tensor.data_location != tensor.DEFAULT
    if outside == tensor.HasField("raw_data") or outside != bool(tensor.external_data):
        raise BundleError(f"{what} does not have its data in exactly one place")
    data = _external(tensor, what, _ITEM[dtype].size, weights) if outside else tensor.raw_data
    if len(data) != wanted:
        raise BundleError(f"{what} of shape {shape} has {len(data)} bytes, not {wanted}")
    small = math.prod(shape) <= MAX_CONSTANTS
    constants = tuple(value for (value,) in _ITEM[dtype].iter_unpack(data)) if small else None
    index = data if dtype == "int64" and len(shape) == 1 and not small else None
    return Value(dtype, shape, constants=constants, stored=True, index_bytes=index)


def read_value_info(info: Any, batch: str) -> Value:
    """Type and shape of a declared input or output; the dimension named `batch` is None."""
    what = f"value {check_name(info.name, 'a value')!r}"
    tensor = info.type.tensor_type
    dtype = _DTYPES.get(tensor.elem_type)
    if dtype is None or not tensor.HasField("shape") or not 1 <= len(tensor.shape.dim) <= MAX_RANK:
        raise BundleError(f"{what} is declared without a dtype and shape of 1 to {MAX_RANK} dimensions")
    shape: list[int | None] = []
    for index, dim in enumerate(tensor.shape.dim):
        if index == 0 and dim.dim_param == batch and not dim.HasField("dim_value"):
            shape.append(None)
        elif dim.HasField("dim_value") and 1 <= dim.dim_value <= MAX_ELEMENTS:
            shape.append(dim.dim_value)
        else:
            raise BundleError(f"{what} is declared with a dimension {index} that is neither known nor the batch")
    return Value(dtype, tuple(shape))


def read_attributes(node: Any, allowed: Mapping[str, Attribute]) -> dict[str, Any]:
    """The node's attributes, each allowed and in range, with the defaults of those that are absent."""
    found = {name: attribute.default for name, attribute in allowed.items()}
    seen: set[str] = set()
    for item in node.attribute:
        if item.name not in allowed or item.name in seen:
            raise BundleError(f"the attribute {item.name[:40]!r} is not allowed, or there twice")
        seen.add(item.name)
        found[item.name] = _attribute(item, allowed[item.name])
    return found


def read_branches(node: Any) -> tuple[Any, Any]:
    """The two graphs of an If."""
    found = {item.name: item.g for item in node.attribute if _filled(item, _GRAPH, "g")}
    if found.keys() != {"then_branch", "else_branch"} or len(node.attribute) != 2:
        raise BundleError("it does not have exactly a then_branch and an else_branch")
    return found["then_branch"], found["else_branch"]


def _attribute(item: Any, allowed: Attribute) -> Any:
    if allowed.words:
        return _word(item, allowed.words)
    several = allowed.count is not None
    kind, name = (_INTS, "ints") if several else (_FLOAT, "f") if allowed.real else (_INT, "i")
    if not _filled(item, kind, name):
        raise BundleError(f"the attribute {item.name!r} has another type")
    values = tuple(getattr(item, name)) if several else (getattr(item, name),)
    counts = range(1, MAX_COUNT + 1) if allowed.count == 0 else (allowed.count or 1,)
    if len(values) not in counts or not all(allowed.low <= value <= allowed.high for value in values):
        raise BundleError(f"the attribute {item.name!r} has the value {values[:8]}, which is out of range")
    return values if several else values[0]


def _word(item: Any, words: tuple[str, ...]) -> str:
    found = {word.encode(): word for word in words}.get(item.s)
    if not _filled(item, _STRING, "s") or found is None:
        raise BundleError(f"the attribute {item.name!r} is not one of {', '.join(words)}")
    return found


def _filled(item: Any, kind: int, name: str) -> bool:
    """Whether an attribute has this type, the one field that belongs to it, and no other."""
    return bool(item.type == kind and {field.name for field, _ in item.ListFields()} == {"name", "type", name})


def _decode(data: bytes) -> Any:
    import onnx

    try:
        return onnx.ModelProto.FromString(data)
    except Exception as error:  # protobuf's own errors share no base class over its implementations
        raise BundleError("model.onnx is not an ONNX model, or is cut short") from error


def _external(tensor: Any, what: str, align_bytes: int, weights: bytes) -> memoryview:
    """The range of the weight file that `tensor` names; any other file, key or range is refused unopened."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if len(entries) != len(tensor.external_data) or entries.keys() != {"location", "offset", "length"}:
        raise BundleError(f"{what} does not give exactly location, offset and length of its external data")
    if entries["location"] != WEIGHTS_FILE:
        raise BundleError(f"{what} is stored in {entries['location'][:60]!r}, not in {WEIGHTS_FILE}")
    if not _NUMBER.fullmatch(entries["offset"]) or not _NUMBER.fullmatch(entries["length"]):
        raise BundleError(f"{what} has an offset or length that is not a plain number")
    offset, length = int(entries["offset"]), int(entries["length"])
    if offset % align_bytes or offset + length > len(weights):
        raise BundleError(f"{what} lies at {offset}+{length} of {len(weights)} bytes, or is not aligned")
    return memoryview(weights)[offset : offset + length]


def _check_fields(message: Any) -> None:
    """Walk the whole tree (protobuf bounds its depth) and refuse every field that is not in the table."""
    name = message.DESCRIPTOR.name
    for field, value in message.ListFields():
        if field.name not in _ALLOWED.get(name, ()):
            raise BundleError(f"it uses {name}.{field.name}, which a bundle must not have")
        single = isinstance(value, _SCALARS) or hasattr(value, "DESCRIPTOR")
        if field.message_type is not None:
            for item in (value,) if single else value:
                _check_fields(item)
        elif field.type == field.TYPE_STRING and not all(isinstance(v, str) for v in ((value,) if single else value)):
            raise BundleError(f"it has a {name}.{field.name} that is not UTF-8")

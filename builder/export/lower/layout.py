"""What moves elements without changing them: reshapes, transpositions, slices, joins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from builder.export.lower.table import translates
from builder.export.lower.values import Shape, Value, axis_of

if TYPE_CHECKING:
    from builder.export.lower.walk import Lowering

__all__ = ["reshaped", "sliced"]

Cut = tuple[int, int, int]
"""Begin, end and step along an axis."""


@translates("identity", "contiguous", "clone", "detach", "dropout", "dropout2d", "feature_dropout")
def _identity(low: Lowering, x: Value, *_: Any, **__: Any) -> Value:
    return x


@translates("to", "type_as", "float")
def _converted(low: Lowering, x: Value, *_: Any, **__: Any) -> Value:
    return x  # what is not float32 was refused where it was made


@translates("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as")
def _view(low: Lowering, x: Value, *_: Any, **__: Any) -> Any:
    return reshaped(low, x.name, x.shape, low.shape)


def reshaped(low: Lowering, name: str, given: Shape, wanted: Shape, part: str = "") -> str:
    """The value `name` of shape `given` in the shape `wanted`; the batch is copied, not written down."""
    if given == wanted:
        return name
    if wanted[:1] != given[:1]:
        raise low.refusal(f"reshapes {given} to {wanted}", "keep the batch in front")
    if len(wanted) == 2:
        return low.emit("Flatten", [name], {"axis": 1}, part=part)
    return low.emit("Reshape", [name, low.integers([0, *wanted[1:]])], part=part)


@translates("permute")
def _permute(low: Lowering, x: Value, *dims: Any) -> Any:
    order = dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims
    return _transposed(low, x.name, [axis_of(dim, len(x.shape)) for dim in order])


@translates("transpose", "swapaxes", "swapdims")
def _transpose(low: Lowering, x: Value, dim0: int, dim1: int) -> Any:
    order = list(range(len(x.shape)))
    one, other = axis_of(dim0, len(order)), axis_of(dim1, len(order))
    order[one], order[other] = order[other], order[one]
    return _transposed(low, x.name, order)


def _transposed(low: Lowering, name: str, order: list[int], part: str = "") -> str:
    if order[0] != 0:
        raise low.refusal("moves the batch", "keep the batch in front")
    return name if order == sorted(order) else low.emit("Transpose", [name], {"perm": order}, part=part)


@translates("channel_shuffle")
def _channel_shuffle(low: Lowering, x: Value, groups: int) -> str:
    batch, channels, *image = x.shape
    split = (batch, groups, channels // groups, *image)
    out = reshaped(low, x.name, x.shape, split, "groups")
    out = _transposed(low, out, [0, 2, 1, *range(3, len(split))], "shuffled")
    return reshaped(low, out, split, low.shape)


@translates("pixel_shuffle")
def _pixel_shuffle(low: Lowering, x: Value, upscale_factor: int) -> str:
    batch, channels, height, width = x.shape
    r = upscale_factor
    split = (batch, channels // r**2, r, r, height, width)
    out = reshaped(low, x.name, x.shape, split, "split")
    out = _transposed(low, out, [0, 1, 4, 2, 5, 3], "shuffled")
    return reshaped(low, out, (batch, -1), low.shape)


@translates("cat", "concat", "concatenate")
def _cat(low: Lowering, tensors: Sequence[Value], dim: int = 0, *, axis: int | None = None) -> Any:
    return _joined(low, [_name(low, each) for each in tensors], dim if axis is None else axis)


@translates("stack")
def _stack(low: Lowering, tensors: Sequence[Value], dim: int = 0) -> Any:
    at = axis_of(dim, len(low.shape))
    single = (*low.shape[:at], 1, *low.shape[at + 1 :])
    parts = [reshaped(low, _name(low, each), each.shape, single, f"part{index}") for index, each in enumerate(tensors)]
    return _joined(low, parts, at)


@translates("repeat", "tile")
def _repeat(low: Lowering, x: Value, *sizes: Any) -> Any:
    counts = sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    if len(counts) != len(x.shape) or counts[0] != 1:
        raise low.refusal("repeats the batch, or adds a dimension", "give 1 for the batch, and as many as it has")
    name = x.name
    for axis, count in enumerate(counts):
        if count > 1:
            name = low.emit("Concat", [name] * count, {"axis": axis}, part=f"axis{axis}")
    return name


@translates("expand", "expand_as", "broadcast_to")
def _expand(low: Lowering, x: Value, *_: Any, **__: Any) -> Any:
    if x.shape == low.shape:
        return x
    if len(x.shape) != len(low.shape):
        raise low.refusal(f"expands {x.shape} to {low.shape}", "unsqueeze it first")
    return low.emit("Expand", [x.name, low.integers([1, *low.shape[1:]])])


@translates("chunk", "split", "split_with_sizes", "tensor_split")
def _split(low: Lowering, x: Value, *sizes_and_dim: Any, dim: int | None = None, **_: Any) -> list[str | None]:
    if dim is None:  # the sizes are known from what they gave, by whatever name they came
        dim = sizes_and_dim[1] if len(sizes_and_dim) > 1 else 0
    axis = axis_of(dim, len(x.shape))
    return [
        None if shape is None else sliced(low, x.name, x.shape, {axis: (begin, begin + length, 1)}, f"part{index}")
        for index, (shape, begin, length) in enumerate(_pieces(low, axis))
    ]


@translates("unbind")
def _unbind(low: Lowering, x: Value, dim: int = 0) -> list[str | None]:
    return [_select(low, x, dim, index, f"part{index}") if shape else None for index, shape in enumerate(low.parts())]


@translates("getitem")
def _getitem(low: Lowering, x: Any, index: Any) -> Any:
    if not isinstance(x, Value):
        return x[index]
    name, shape, axis = x.name, x.shape, 0
    cuts: dict[int, Cut] = {}
    for each in _full(index if isinstance(index, tuple) else (index,), len(shape)):
        if each is None:
            continue
        if isinstance(each, slice):
            cuts[axis] = each.indices(shape[axis])
        elif isinstance(each, int):
            cuts[axis] = (axis_of(each, shape[axis]), axis_of(each, shape[axis]) + 1, 1)
        else:
            raise low.refusal("is indexed by a tensor", "use slices with constant bounds")
        axis += 1
    name = sliced(low, name, shape, cuts, "slice")
    left = tuple(len(range(*cuts[at])) if at in cuts else size for at, size in enumerate(shape))
    return reshaped(low, name, left, low.shape)


@translates("slice")
def _slice(
    low: Lowering, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Any:
    axis = axis_of(dim, len(x.shape))
    return sliced(low, x.name, x.shape, {axis: slice(start, end, step).indices(x.shape[axis])})


@translates("narrow")
def _narrow(low: Lowering, x: Value, dim: int, start: int, length: int) -> Any:
    axis = axis_of(dim, len(x.shape))
    begin = axis_of(start, x.shape[axis])
    return sliced(low, x.name, x.shape, {axis: (begin, begin + length, 1)})


@translates("select")
def _select(low: Lowering, x: Value, dim: int, index: int, part: str = "") -> Any:
    axis = axis_of(dim, len(x.shape))
    at = axis_of(index, x.shape[axis])
    name = sliced(low, x.name, x.shape, {axis: (at, at + 1, 1)}, f"{part}.slice".lstrip("."))
    single = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    return reshaped(low, name, single, (*x.shape[:axis], *x.shape[axis + 1 :]), part)


def sliced(low: Lowering, name: str, shape: Shape, cuts: dict[int, Cut], part: str = "") -> str:
    """What is left of the value `name` of `shape` between the cuts; the batch stays whole."""
    real = {axis: cut for axis, cut in cuts.items() if cut != (0, shape[axis], 1)}
    if not real:
        return name
    if 0 in real or any(step < 1 for _, _, step in real.values()):
        raise low.refusal("takes a part of the batch, or steps backwards", "slice other dimensions, forwards")
    begins, ends, steps = zip(*real.values(), strict=True)
    return low.emit("Slice", [name, *map(low.integers, (begins, ends, list(real), steps))], part=part)


def _pieces(low: Lowering, axis: int) -> Iterator[tuple[Shape | None, int, int]]:
    """Of each part of a split: its shape if something reads it, where it begins, its length."""
    begin = 0
    for shape, length in zip(low.parts(), low.lengths(axis), strict=True):
        yield shape, begin, length
        begin += length


def _full(index: tuple[Any, ...], rank: int) -> Iterator[Any]:
    """An index of a tensor with the dots written out."""
    named = sum(each is not None and each is not Ellipsis for each in index)
    for each in index:
        if each is Ellipsis:
            yield from [slice(None)] * (rank - named)
        else:
            yield each


def _name(low: Lowering, given: Any) -> str:
    if not isinstance(given, Value):
        raise low.refusal("joins activations with constants", "join activations only")
    return given.name


def _joined(low: Lowering, names: list[str], dim: int) -> str:
    axis = axis_of(dim, len(low.shape))
    if axis == 0:
        raise low.refusal("joins along the batch", "join another dimension")
    return low.emit("Concat", names, {"axis": axis}) if len(names) > 1 else names[0]

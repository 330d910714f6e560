"""Which channels of a traced graph belong together, followed from value to value.

A value's channels lie along one axis and consist of parts, one behind the other; each part belongs to a **width**, a
set of channels that can only be kept or dropped together in all values that hold it. Dense convolutions and linear
layers begin a new width; element-wise operations, BN, pooling and depthwise convolutions hand the parts on; additions
and products tie the parts of their operands; a concatenation puts them behind each other, a split takes them apart. A
grouped convolution ties its input to its output in blocks of one group (many groups), or asks for as many channels in
each group (few groups). Operations that are not known here block what they touch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import fx, nn

from builder.elastify.nodes import PASSING, is_activation, module_of, op_name, shape_of, tensor_inputs
from builder.elastify.slices import axis_order, picked_range, split_axis
from builder.elastify.widths import WidthTable

__all__ = ["ChannelLayouts", "Layout"]

MANY_GROUPS = 4
"""From this number of groups on, a grouped convolution is narrowed by whole groups."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the channels of a value are."""

    axis: int
    """The channel axis, the batch being axis 0."""

    parts: tuple[int, ...]
    """Numbers of the parts, in order."""


class ChannelLayouts:
    """Layouts of all values of `module`, whose nodes carry the shapes that tracing recorded."""

    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self.table = WidthTable()
        self._layouts: dict[fx.Node, Layout] = {}
        self._calls: dict[str, tuple[Layout, Layout]] = {}
        self._constants: dict[str, tuple[int, Layout]] = {}
        for node in module.graph.nodes:
            if node.op not in ("get_attr", "output") and shape_of(node):
                self._follow(node)
        self.layouts = {node: self._expanded(layout) for node, layout in self._layouts.items()}
        """Value -> its layout."""
        self.calls = {name: tuple(map(self._expanded, pair)) for name, pair in self._calls.items()}
        """Layer (by module path) -> layouts of its input and its output."""
        self.constants = {name: (axis, self._expanded(like)) for name, (axis, like) in self._constants.items()}
        """Parameter that is added or multiplied (by path) -> its own channel axis, and the layout it follows."""
        for node, layout in self.layouts.items():
            for part in layout.parts:
                self.table.facts(part).values.add(node)

    def block(self, node: fx.Node) -> None:
        """Leave every width of the value `node` as it is."""
        if node in self._layouts:
            self.table.block(self._layout(node).parts)

    def _expanded(self, layout: Layout) -> Layout:
        return Layout(layout.axis, self.table.expand(layout.parts))

    def _layout(self, node: fx.Node) -> Layout:
        return self._expanded(self._layouts[node])

    def _follow(self, node: fx.Node) -> None:
        shape = shape_of(node)
        if node.op == "placeholder":
            if len(shape) >= 2:
                self._layouts[node] = Layout(1, (self.table.new(shape[1]),))
            return
        layout = self._picked(node) or self._known(node)
        if layout is not None:
            self._layouts[node] = layout
            return
        for source in tensor_inputs(node):
            self.block(source)
        if len(shape) >= 2:
            self._layouts[node] = Layout(1, (self.table.new(shape[1], blocked=True),))

    def _known(self, node: fx.Node) -> Layout | None:
        """Layout of what `node` gives; None where its meaning for channels is not known."""
        sources = tensor_inputs(node)
        if not sources or any(source not in self._layouts for source in sources):
            for source in sources:  # behind a split whose pieces are not known
                for beyond in tensor_inputs(source) if source not in self._layouts else ():
                    self.block(beyond)
            return None
        name, module, first = op_name(self._module, node), module_of(self._module, node), self._layout(sources[0])
        if isinstance(module, nn.Conv2d):
            return self._conv(node, module, first)
        if isinstance(module, nn.Linear):
            return self._dense(node, first, module.out_features) if first.axis == len(shape_of(node)) - 1 else None
        if is_activation(self._module, node):
            for part in first.parts:
                self.table.facts(part).activated = True
        if module is not None and _is_carrier(module, first.axis, len(shape_of(node))):
            return self._called(node, first, first)
        if is_activation(self._module, node) or self._passes(node, name, sources[0], first):
            return first
        if name in ("add", "mul", "sub", "truediv"):
            return self._binary(node, sources)
        if name in ("cat", "concat"):
            return self._cat(node)
        return _moved(node, name, sources[0], first)

    def _passes(self, node: fx.Node, name: str, source: fx.Node, first: Layout) -> bool:
        """Whether an operation handles each channel of an image by itself; padding of the channels does not."""
        return name in PASSING and first.axis == 1 and shape_of(node)[:2] == shape_of(source)[:2]

    def _picked(self, node: fx.Node) -> Layout | None:
        """A piece of a split, or a slice, along the channels; None where `node` is something else."""
        found = picked_range(self._module, node)
        if found is None or found.source not in self._layouts:
            return None
        layout = self._layout(found.source)
        if found.axis != layout.axis:
            return layout
        if not (self.table.cut(layout.parts, found.start) and self.table.cut(layout.parts, found.stop)):
            return None
        parts, offset = [], 0
        for part in self.table.expand(layout.parts):
            if found.start <= offset < found.stop:
                parts.append(part)
            offset += self.table.size(part)
        return Layout(layout.axis, tuple(parts))

    def _conv(self, node: fx.Node, conv: nn.Conv2d, first: Layout) -> Layout | None:
        if first.axis != 1:
            return None
        if conv.groups == 1:
            return self._dense(node, first, conv.out_channels)
        if conv.groups == conv.in_channels == conv.out_channels:
            return self._called(node, first, first)
        if len(first.parts) != 1:
            return None
        result = Layout(1, (self.table.new(conv.out_channels),))
        if conv.groups >= MANY_GROUPS:
            self.table.tie(first.parts[0], result.parts[0], conv.groups)
            return self._called(node, first, result)
        self._demand_balance(first.parts[0], conv.groups)
        self._demand_balance(result.parts[0], conv.groups)
        self.table.facts(first.parts[0]).consumers.append(str(node.target))
        self.table.facts(result.parts[0]).producers.append(str(node.target))
        return self._called(node, first, result)

    def _demand_balance(self, part: int, groups: int) -> None:
        facts = self.table.facts(part)
        facts.balance = math.lcm(facts.balance, groups)
        facts.blocked |= bool(facts.units % facts.balance) or facts.units != self.table.size(part)

    def _dense(self, node: fx.Node, first: Layout, outputs: int) -> Layout:
        result = Layout(first.axis, (self.table.new(outputs),))
        for part in first.parts:
            self.table.facts(part).consumers.append(str(node.target))
        self.table.facts(result.parts[0]).producers.append(str(node.target))
        return self._called(node, first, result)

    def _called(self, node: fx.Node, first: Layout, result: Layout) -> Layout:
        """Note the layouts of a layer; where it is called twice, both calls must mean the same channels."""
        known = self._calls.setdefault(str(node.target), (first, result))
        for one, other in zip(known, (first, result), strict=True):
            if one.parts != other.parts and not self.table.tie_values(one.parts, other.parts):
                for layout in (*known, first, result):
                    self.table.block(self.table.expand(layout.parts))
        return result

    def _binary(self, node: fx.Node, sources: list[fx.Node]) -> Layout | None:
        constants = [value for value in node.args if isinstance(value, fx.Node) and value.op == "get_attr"]
        if len(sources) == 1:
            return self._with_constant(sources[0], constants[0]) if constants else self._layout(sources[0])
        one, two = (self._layout(source) for source in sources[:2])
        ranks = [len(shape_of(source)) for source in sources[:2]]
        if one.axis - ranks[0] != two.axis - ranks[1] or not self.table.tie_values(one.parts, two.parts):
            return None
        return one if ranks[0] >= ranks[1] else two

    def _with_constant(self, source: fx.Node, constant: fx.Node) -> Layout | None:
        """A parameter such as a layer's scale: one number for each channel, or one for all."""
        layout, shape = self._layout(source), shape_of(constant)
        channels = sum(self.table.sizes(layout.parts))
        axis = layout.axis - len(shape_of(source)) + len(shape)
        if math.prod(shape) == 1:
            return layout
        if axis < 0 or math.prod(shape) != channels or shape[axis] != channels:
            return None
        known = self._constants.setdefault(str(constant.target), (axis, layout))
        return layout if known == (axis, layout) else None

    def _cat(self, node: fx.Node) -> Layout | None:
        listed = node.args[0]
        if not isinstance(listed, (list, tuple)) or any(item not in self._layouts for item in listed):
            return None
        layouts = [self._layout(item) for item in listed]
        axis = split_axis(node, 1)
        if any(layout.axis != axis for layout in layouts):
            return None
        return Layout(axis, tuple(part for layout in layouts for part in layout.parts))


def _is_carrier(module: nn.Module, axis: int, rank: int) -> bool:
    """Whether a layer holds one parameter for each channel."""
    if isinstance(module, nn.LayerNorm):
        return axis == rank - 1 and len(module.normalized_shape) == 1
    if isinstance(module, nn.PReLU):
        return axis == 1 and module.num_parameters > 1
    return axis == 1 and isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d, nn.InstanceNorm2d))


def _moved(node: fx.Node, name: str, source: fx.Node, layout: Layout) -> Layout | None:
    """Operations that move axes about, or reduce other axes than the channels'."""
    before, after = shape_of(source), shape_of(node)
    if name in ("permute", "transpose"):
        order = axis_order(node, name, len(before))
        return Layout(order.index(layout.axis), layout.parts) if order else None
    known = ("mean", "sum", "amax", "flatten", "view", "reshape", "squeeze", "unsqueeze", "Flatten", "expand_as")
    # Up to and with the channels nothing has moved, and none of the axes before them is new.
    kept = before[: layout.axis + 1] == after[: layout.axis + 1] and before[layout.axis] > 1
    resized = name in ("view", "reshape", "flatten", "Flatten") and math.prod(before) != math.prod(after)
    return layout if name in known and kept and not resized else None

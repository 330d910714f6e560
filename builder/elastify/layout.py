"""Which channels of a traced graph belong together, followed from value to value.

A value's channels lie along one axis and consist of **parts**, one behind the other; each part belongs to a **width**, a
set of channels that can only be kept or dropped together in all values that hold it. Dense convolutions and linear
layers begin a new width; element-wise operations, BN, pooling and depthwise convolutions hand the parts on; additions
and products tie the parts of their operands; a concatenation puts them behind each other. A grouped convolution ties
its input to its output in blocks of one group (many groups), or asks for as many channels in each group (few groups).
Operations that are not known here block what they touch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import fx, nn

from builder.elastify.nodes import PASSING, is_activation, module_of, op_name, shape_of, tensor_inputs

__all__ = ["ChannelLayouts", "Layout", "WidthFacts"]

MANY_GROUPS = 4
"""From this number of groups on, a grouped convolution is narrowed by whole groups."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the channels of a value are."""

    axis: int
    """The channel axis, the batch being axis 0."""

    parts: tuple[int, ...]
    """Numbers of the parts, in order."""


@dataclass(slots=True)
class WidthFacts:
    """What is known of one width while the graph is followed."""

    units: int
    """Blocks of channels that are kept or dropped as a whole."""

    balance: int = 1
    """Each of so many equal ranges keeps the same number of channels."""

    blocked: bool = False
    activated: bool = False
    """Whether a non-linearity lies on it; a linear bottleneck is narrow already."""

    producers: list[str] = field(default_factory=list)
    consumers: list[str] = field(default_factory=list)
    values: set[fx.Node] = field(default_factory=set)


class ChannelLayouts:
    """Layouts of all values of `module`, whose nodes carry the shapes that tracing recorded."""

    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self._parent: list[int] = []
        self._sizes: list[int] = []
        self._facts: list[WidthFacts] = []
        self.layouts: dict[fx.Node, Layout] = {}
        self.calls: dict[str, tuple[Layout, Layout]] = {}
        """Layer (by module path) -> layouts of its input and its output."""
        self.constants: dict[str, tuple[int, Layout]] = {}
        """Parameter that is added or multiplied (by path) -> its own channel axis, and the layout it follows."""
        for node in module.graph.nodes:
            if node.op not in ("get_attr", "output") and shape_of(node):
                self._follow(node)
        for node, layout in self.layouts.items():
            for part in layout.parts:
                self.facts(part).values.add(node)

    def root(self, part: int) -> int:
        """Number of the width that a part belongs to."""
        while self._parent[part] != part:
            self._parent[part] = self._parent[self._parent[part]]
            part = self._parent[part]
        return part

    def facts(self, part: int) -> WidthFacts:
        """What is known of the width that a part belongs to."""
        return self._facts[self.root(part)]

    def size(self, part: int) -> int:
        """Channels of a part."""
        return self._sizes[part]

    def roots(self) -> list[int]:
        """All widths, in order of their first value."""
        return [part for part in range(len(self._parent)) if self.root(part) == part]

    def block(self, node: fx.Node) -> None:
        """Leave every width of the value `node` as it is."""
        for part in self.layouts[node].parts if node in self.layouts else ():
            self.facts(part).blocked = True

    def _new(self, size: int, *, blocked: bool = False) -> int:
        self._parent.append(len(self._parent))
        self._sizes.append(size)
        self._facts.append(WidthFacts(units=size, blocked=blocked))
        return len(self._parent) - 1

    def _tie(self, first: int, second: int, units: int) -> None:
        """Make one width of two parts that consist of `units` blocks each."""
        a, b = self.root(first), self.root(second)
        one, two = self._facts[a], self._facts[b]
        one.units = math.gcd(one.units, two.units, units)
        if a == b:
            return
        one.blocked |= two.blocked
        one.activated |= two.activated
        one.balance = math.lcm(one.balance, two.balance)
        one.producers += two.producers
        one.consumers += two.consumers
        self._parent[b] = a

    def _follow(self, node: fx.Node) -> None:
        shape = shape_of(node)
        if node.op == "placeholder":
            if len(shape) >= 2:
                self.layouts[node] = Layout(1, (self._new(shape[1]),))
            return
        layout = self._known(node)
        if layout is not None:
            self.layouts[node] = layout
            return
        for source in tensor_inputs(node):
            self.block(source)
        if len(shape) >= 2:
            self.layouts[node] = Layout(1, (self._new(shape[1], blocked=True),))

    def _known(self, node: fx.Node) -> Layout | None:
        """Layout of what `node` gives; None where its meaning for channels is not known."""
        sources = tensor_inputs(node)
        if not sources or any(source not in self.layouts for source in sources):
            return None
        name, module, first = op_name(self._module, node), module_of(self._module, node), self.layouts[sources[0]]
        if isinstance(module, nn.Conv2d):
            return self._conv(node, module, first)
        if isinstance(module, nn.Linear):
            return self._dense(node, first, module.out_features) if first.axis == len(shape_of(node)) - 1 else None
        if is_activation(self._module, node):
            for part in first.parts:
                self.facts(part).activated = True
        if module is not None and self._is_carrier(module, first, len(shape_of(node))):
            return self._carrier(node, first)
        if is_activation(self._module, node) or self._passes(node, name, sources[0], first):
            return first
        if name in ("add", "mul", "sub", "truediv"):
            return self._binary(node, sources)
        if name in ("cat", "concat"):
            return self._cat(node, [self.layouts[source] for source in sources])
        return self._moved(node, name, sources[0], first)

    def _passes(self, node: fx.Node, name: str, source: fx.Node, first: Layout) -> bool:
        """Whether an operation handles each channel of an image by itself; padding of the channels does not."""
        return name in PASSING and first.axis == 1 and shape_of(node)[:2] == shape_of(source)[:2]

    def _conv(self, node: fx.Node, conv: nn.Conv2d, first: Layout) -> Layout | None:
        if first.axis != 1:
            return None
        if conv.groups == 1:
            return self._dense(node, first, conv.out_channels)
        if len(first.parts) != 1:
            return self._tied_parts(node, conv, first)
        result = Layout(1, (self._new(conv.out_channels),))
        if conv.groups >= MANY_GROUPS:
            self._tie(first.parts[0], result.parts[0], conv.groups)
            return self._called(node, first, result)
        self._demand_balance(first.parts[0], conv.groups)
        self._demand_balance(result.parts[0], conv.groups)
        self.facts(first.parts[0]).consumers.append(str(node.target))
        self.facts(result.parts[0]).producers.append(str(node.target))
        return self._called(node, first, result)

    def _tied_parts(self, node: fx.Node, conv: nn.Conv2d, first: Layout) -> Layout | None:
        """A depthwise convolution behind a concatenation hands all parts on."""
        if conv.groups == conv.in_channels == conv.out_channels:
            return self._called(node, first, first)
        return None

    def _demand_balance(self, part: int, groups: int) -> None:
        facts = self.facts(part)
        facts.balance = math.lcm(facts.balance, groups)
        if facts.units % facts.balance or facts.units != self._sizes[part]:
            facts.blocked = True

    def _dense(self, node: fx.Node, first: Layout, outputs: int) -> Layout:
        result = Layout(first.axis, (self._new(outputs),))
        for part in first.parts:
            self.facts(part).consumers.append(str(node.target))
        self.facts(result.parts[0]).producers.append(str(node.target))
        return self._called(node, first, result)

    def _called(self, node: fx.Node, first: Layout, result: Layout) -> Layout:
        """Note the layouts of a layer; where it is called twice, both calls must mean the same channels."""
        target = str(node.target)
        known = self.calls.setdefault(target, (first, result))
        for one, other in zip(known, (first, result), strict=True):
            if [self._sizes[p] for p in one.parts] != [self._sizes[p] for p in other.parts]:
                return self._refuse(target, first, result)
            for a, b in zip(one.parts, other.parts, strict=True):
                if a != b:
                    self._tie(a, b, self._sizes[a])
        return result

    def _refuse(self, target: str, first: Layout, result: Layout) -> Layout:
        for layout in (*self.calls[target], first, result):
            for part in layout.parts:
                self.facts(part).blocked = True
        return result

    def _is_carrier(self, module: nn.Module, first: Layout, rank: int) -> bool:
        """Whether a layer holds one parameter for each channel."""
        if isinstance(module, nn.LayerNorm):
            return first.axis == rank - 1 and len(module.normalized_shape) == 1
        if isinstance(module, nn.PReLU):
            return first.axis == 1 and module.num_parameters > 1
        return first.axis == 1 and isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d, nn.InstanceNorm2d))

    def _carrier(self, node: fx.Node, first: Layout) -> Layout:
        return self._called(node, first, first)

    def _binary(self, node: fx.Node, sources: list[fx.Node]) -> Layout | None:
        operands = [value for value in node.args if isinstance(value, fx.Node)]
        if len(sources) == 1:
            constants = [value for value in operands if value.op == "get_attr"]
            return self._with_constant(sources[0], constants[0]) if constants else self.layouts[sources[0]]
        one, two = (self.layouts[source] for source in sources[:2])
        ranks = [len(shape_of(source)) for source in sources[:2]]
        aligned = one.axis - ranks[0] == two.axis - ranks[1]
        if not aligned or [self._sizes[p] for p in one.parts] != [self._sizes[p] for p in two.parts]:
            return None
        for a, b in zip(one.parts, two.parts, strict=True):
            self._tie(a, b, self._sizes[a])
        return one if ranks[0] >= ranks[1] else two

    def _with_constant(self, source: fx.Node, constant: fx.Node) -> Layout | None:
        """A parameter such as a layer's scale: one number for each channel, or one for all."""
        layout, rank = self.layouts[source], len(shape_of(source))
        shape = shape_of(constant)
        channels = sum(self._sizes[part] for part in layout.parts)
        axis = layout.axis - rank + len(shape)
        if math.prod(shape) == 1:
            return layout
        if axis < 0 or math.prod(shape) != channels or shape[axis] != channels:
            return None
        known = self.constants.setdefault(str(constant.target), (axis, layout))
        return layout if known == (axis, layout) else None

    def _cat(self, node: fx.Node, layouts: list[Layout]) -> Layout | None:
        listed = node.args[0]
        if not isinstance(listed, (list, tuple)) or any(not isinstance(item, fx.Node) for item in listed):
            return None
        layouts = [self.layouts[item] for item in listed if item in self.layouts]
        axis = node.kwargs.get("dim", node.kwargs.get("axis", node.args[1] if len(node.args) > 1 else 0))
        axis += len(shape_of(node)) if axis < 0 else 0
        if len(layouts) != len(listed) or any(layout.axis != axis for layout in layouts):
            return None
        return Layout(axis, tuple(part for layout in layouts for part in layout.parts))

    def _moved(self, node: fx.Node, name: str, source: fx.Node, layout: Layout) -> Layout | None:
        """Operations that move axes about, or reduce other axes than the channels'."""
        before, after = shape_of(source), shape_of(node)
        if name in ("permute", "transpose"):
            order = _axis_order(node, name, len(before))
            return Layout(order.index(layout.axis), layout.parts) if order else None
        known = ("mean", "sum", "amax", "flatten", "view", "reshape", "squeeze", "unsqueeze", "Flatten", "expand_as")
        # Up to and with the channels nothing has moved, and none of the axes before them is new.
        kept = before[: layout.axis + 1] == after[: layout.axis + 1] and before[layout.axis] > 1
        if name not in known or not kept:
            return None
        if name in ("view", "reshape", "flatten", "Flatten") and math.prod(before) != math.prod(after):
            return None
        return layout


def _axis_order(node: fx.Node, name: str, rank: int) -> list[int]:
    """The axes of the input in the order of the output; empty where they are not plain numbers."""
    numbers = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], (list, tuple)) else node.args[1:]
    if not numbers or not all(isinstance(number, int) for number in numbers):
        return []
    axes = [int(number) % rank for number in numbers]
    if name == "permute":
        return axes
    order = list(range(rank))
    order[axes[0]], order[axes[1]] = order[axes[1]], order[axes[0]]
    return order

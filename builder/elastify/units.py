"""Choose the units of a traced CNN: disjoint regions that may be exchanged and that hold as much compute as possible.

Every closed region (see `regions`) between two values is a candidate. It is worth the compute of its layers that touch
an inner width, and where it can be skipped (a residual region of one shape) all of its compute. Candidates that do not
overlap are chosen so that the sum is largest, in one pass over the graph; equal sums are decided for residual regions,
for more units, then for fewer nodes. So a residual block, a linear bottleneck, the inside of a dense layer, the branch
of a split, a pair of plain convolutions, and a single head with a hidden layer come out of the same rule. The stem
stays fixed, and any other head.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx, nn

from builder.elastify.cost import node_macs
from builder.elastify.layout import ChannelLayouts
from builder.elastify.narrow import kept_channels
from builder.elastify.nodes import (
    is_activation,
    is_add,
    is_conv,
    is_norm,
    is_padding,
    module_of,
    op_name,
    shape_of,
    tensor_inputs,
)
from builder.elastify.regions import GraphIndex, Region, bits, find_regions, is_image

__all__ = ["Choice", "choose_units"]

MOST_LAYERS = 24
"""Convolutions and linear layers in one unit at most."""

PROBE_WIDTH = 0.5
RESIDUAL_BONUS, ADDITION_BONUS = 0.05, 0.02
UNIT_SHARE, UNIT_BONUS = 0.003, 0.1
"""A further unit is worth this share of the network's compute, but at most this share of its own."""

NODE_COST = 1e-6
LEAST_WORTH = 1e-3
"""Units of less than this share of the network's compute are not worth a gate."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A region that became a unit."""

    entry: fx.Node
    nodes: tuple[fx.Node, ...]
    """In order, without constants; the last one makes the value that leaves."""

    reason: str
    """In one clause what it is."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    region: Region
    score: float
    reason: str

    @property
    def first(self) -> int:
        return (self.region.mask & -self.region.mask).bit_length() - 1


def choose_units(traced: fx.GraphModule) -> list[Choice]:
    """The units of a graph from `trace`, in order; empty where nothing is worth exchanging."""
    chooser = _Chooser(traced)
    chosen = _best_disjoint(chooser.candidates())
    nodes = chooser.index.nodes
    return [Choice(nodes[c.region.entry], tuple(nodes[i] for i in bits(c.region.mask)), c.reason) for c in chosen]


def _best_disjoint(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """Weighted interval scheduling: the disjoint stretches of nodes of the largest total score."""
    ordered = sorted(candidates, key=lambda c: c.region.exit)
    ends = [c.region.exit for c in ordered]
    best: list[tuple[float, int, bool]] = [(0.0, 0, False)]
    for number, candidate in enumerate(ordered):
        before = bisect_right(ends, candidate.first - 1, hi=number)
        taken, left = best[before][0] + candidate.score, best[number][0]
        best.append((taken, before, True) if taken > left else (left, number, False))
    chosen, at = [], len(ordered)
    while at:
        _, before, taken = best[at]
        if taken:
            chosen.append(ordered[at - 1])
        at = before
    return chosen[::-1]


class _Chooser:
    """What the candidates of one graph are worth."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self._traced = traced
        self.index = GraphIndex(traced.graph)
        self._macs = [node_macs(traced, node) for node in self.index.nodes]
        self._total = max(1, sum(self._macs))
        self._convs = self._mask_of(lambda node: is_conv(traced, node))
        self._layers = self._mask_of(lambda node: node_macs(traced, node) > 0)
        self._widths = self._inner_widths()

    def candidates(self) -> list[_Candidate]:
        cuts = self._mask_of(self._is_cut)
        regions = [r for r in find_regions(self.index, cuts, self._layers, MOST_LAYERS) if self._is_behind_stem(r)]
        residual = [r for r in regions if self._is_residual(r)]
        innermost = [r for r in residual if not any(_holds(r, other) for other in residual)]
        found = []
        for region in regions:
            if any(_holds(region, other) for other in innermost):
                continue
            candidate = self._valued(region, residual=region in innermost)
            if candidate.score > 0:
                found.append(candidate)
        return found

    def _mask_of(self, wanted: object) -> int:
        return sum(1 << i for i, node in enumerate(self.index.nodes) if wanted(node))

    def _is_cut(self, node: fx.Node) -> bool:
        """Whether a unit may begin or end at a value: not between a layer and its BN, activation or padding."""
        if not (is_image(node) or self._is_last_layer(node)) or is_padding(self._traced, node):
            return False
        users = list(node.users)
        if len(users) != 1:
            return True
        sticky = is_norm(self._traced, users[0]) or is_activation(self._traced, users[0])
        made_by_layer = node_macs(self._traced, node) > 0 or is_norm(self._traced, node)
        added = is_add(node) and is_activation(self._traced, users[0])
        return not (sticky and made_by_layer) and not added

    def _is_last_layer(self, node: fx.Node) -> bool:
        """Whether a value that is no image is a layer's, its norm's or its activation's, and no layer comes later."""
        position = self.index.position[node]
        of_layer = self._layers >> position & 1 or is_norm(self._traced, node) or is_activation(self._traced, node)
        later = self.index.descendants[position] & self._layers
        return bool(of_layer) and not later and len(shape_of(node)) > 1 and not is_image(node)

    def _is_behind_stem(self, region: Region) -> bool:
        """Whether a convolution comes before it: the first one, which reads the image, stays fixed."""
        above = self.index.ancestors[region.entry] | 1 << region.entry
        wanted = self._convs if is_image(self.index.nodes[region.exit]) else self._layers
        return bool(above & self._convs) and bool(region.mask & wanted)

    def _exit_addition(self, region: Region) -> fx.Node:
        """The node behind which only activations follow up to the exit."""
        node = self.index.nodes[region.exit]
        while is_activation(self._traced, node) and region.mask >> self.index.position[node.all_input_nodes[0]] & 1:
            node = tensor_inputs(node)[0]
        return node

    def _is_residual(self, region: Region) -> bool:
        """Whether it ends at the addition of a shortcut (the entry, or linear operations on it) and another way."""
        end = self._exit_addition(region)
        if not is_add(end):
            return False
        first, second = (self._way(region, operand) for operand in tensor_inputs(end))
        return any(
            self._is_linear(one) and other & self._convs and not self._is_linear(other)
            for one, other in ((first, second), (second, first))
        )

    def _way(self, region: Region, operand: fx.Node) -> int:
        position = self.index.position[operand]
        return region.mask & (self.index.ancestors[position] | 1 << position)

    def _is_linear(self, way: int) -> bool:
        return not any(is_activation(self._traced, self.index.nodes[i]) for i in bits(way))

    def _inner_widths(self) -> list[tuple[int, int]]:
        """For each width that can shrink: bit set of the values that hold it, of the layers that touch it."""
        channels = ChannelLayouts(self._traced)
        by_path: dict[str, int] = {}
        for i, node in enumerate(self.index.nodes):
            if module_of(self._traced, node) is not None:
                by_path[str(node.target)] = by_path.get(str(node.target), 0) | 1 << i
        found = []
        for root in channels.table.roots():
            facts, size = channels.table.facts(root), channels.table.size(root)
            shrinks = facts.units < size or kept_channels(size, PROBE_WIDTH) < size
            if facts.blocked or not (facts.producers and facts.consumers and facts.activated and shrinks):
                continue
            values = sum(1 << self.index.position[node] for node in facts.values)
            touching = 0
            for name in (*facts.producers, *facts.consumers):
                touching |= by_path[name]
            found.append((values, touching | values & self._layers))
        return found

    def _valued(self, region: Region, *, residual: bool) -> _Candidate:
        inner = region.mask & ~(1 << region.exit)
        touched = 0
        for values, layers in self._widths:
            if not values & ~inner:
                touched |= layers & region.mask
        entry, last = self.index.nodes[region.entry], self.index.nodes[region.exit]
        whole = residual and shape_of(entry) == shape_of(last)
        worth = sum(self._macs[i] for i in bits(region.mask if whole else touched))
        ends_at_add = is_add(self._exit_addition(region))
        bonus = RESIDUAL_BONUS if residual else ADDITION_BONUS if ends_at_add else 0.0
        if worth < LEAST_WORTH * self._total:
            return _Candidate(region, 0.0, "")
        score = worth * (1 + bonus) + min(UNIT_SHARE * self._total, UNIT_BONUS * worth)
        score -= NODE_COST * self._total * region.mask.bit_count()
        return _Candidate(region, score, self._reason(region, residual))

    def _reason(self, region: Region, residual: bool) -> str:
        if residual:
            return "residual region"
        nodes = [self.index.nodes[i] for i in bits(region.mask)]
        if not is_image(nodes[-1]):
            return "head with a hidden layer"
        names = {op_name(self._traced, node) for node in nodes}
        if names & {"cat", "concat"}:
            return "branches that are concatenated"
        if is_add(self._exit_addition(region)):
            return "branches that are added"
        end = nodes[-1]
        convs = [module_of(self._traced, node) for node in nodes if is_conv(self._traced, node)]
        linear_exit = is_conv(self._traced, end) or isinstance(module_of(self._traced, end), nn.BatchNorm2d)
        if linear_exit:
            return "linear bottleneck"
        depthwise = any(conv.groups == conv.in_channels > 1 for conv in convs if isinstance(conv, nn.Conv2d))
        return "depthwise separable run" if depthwise else "plain run of convolutions"


def _holds(region: Region, other: Region) -> bool:
    return region.mask != other.mask and not other.mask & ~region.mask

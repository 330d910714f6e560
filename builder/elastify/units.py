"""Find the units of a traced CNN: the single-entry, single-exit regions that may be exchanged.

A cut is a value through which every path from the input to the output goes. Between two neighbouring cuts there is
either one operation or a region of several paths, and a region that contains convolutions and ends at an addition is
a residual unit. In the plain runs between such regions a unit ends at each linear convolution (one that no activation
follows: the projection of an inverted residual without shortcut). All the rest is fixed: stem, pooling, head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import fx, nn

from builder.elastify.trace import is_activation, is_add, module_of, shape_of, subgraph

__all__ = ["Segment", "find_segments"]


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of the network between two cuts; the pieces in order are the network."""

    module: fx.GraphModule
    """The piece as a module of one input and one output; shares its weights with the traced network."""

    elastic: bool
    """Whether it is a unit that can get alternatives; fixed otherwise."""

    in_shape: tuple[int, ...]
    """Shape of its input without the batch dimension."""

    out_shape: tuple[int, ...]
    """Shape of its output without the batch dimension."""

    reason: str
    """In one clause why it is a unit, or why it stays fixed."""

    @property
    def keeps_shape(self) -> bool:
        """Whether it can be skipped: input and output have the same shape."""
        return self.in_shape == self.out_shape


def find_segments(traced: fx.GraphModule) -> list[Segment]:
    """Split a graph from `trace` into fixed pieces and units, in order, input first."""
    cuts = _cuts(traced.graph)
    steps = [(entry, _between(traced.graph, entry, cut)) for entry, cut in pairwise(cuts)]
    return [_segment(traced, *piece) for piece in _group(traced, steps)]


def _cuts(graph: fx.Graph) -> list[fx.Node]:
    """Values that are alone alive after they are computed, placeholder first, network output last."""
    nodes = [node for node in graph.nodes if node.op not in ("output", "get_attr")]
    position = {node: index for index, node in enumerate(nodes)}
    last_use = {node: max((position.get(user, len(nodes)) for user in node.users), default=-1) for node in nodes}
    cuts, furthest = [], -1
    for index, node in enumerate(nodes):
        if furthest <= index:
            cuts.append(node)
        furthest = max(furthest, last_use[node])
    return cuts


def _between(graph: fx.Graph, entry: fx.Node, exit_node: fx.Node) -> list[fx.Node]:
    """All nodes after `entry` up to and including `exit_node`, with the constants that they read."""
    inside = False
    body: list[fx.Node] = []
    for node in graph.nodes:
        if inside and node.op != "output":
            body.append(node)
        if node is entry:
            inside = True
        if node is exit_node:
            return body
    return body


Step = tuple[fx.Node, list[fx.Node]]
Piece = tuple[fx.Node, list[fx.Node], str]


def _group(traced: fx.GraphModule, steps: Sequence[Step]) -> Iterator[Piece]:
    """Join steps into pieces: (entry, nodes, reason); an empty reason marks a fixed piece."""
    run: list[Step] = []
    index = 0
    while index < len(steps):
        entry, nodes = steps[index]
        index += 1
        if not _is_residual(traced, nodes):
            run.append((entry, nodes))
            continue
        yield from _split_run(traced, run)
        run = []
        while index < len(steps) and len(steps[index][1]) == 1 and is_activation(traced, steps[index][1][0]):
            nodes = nodes + steps[index][1]
            index += 1
        yield entry, nodes, "residual region"
    yield from _split_run(traced, run)


def _is_residual(traced: fx.GraphModule, nodes: Sequence[fx.Node]) -> bool:
    return len(nodes) > 1 and is_add(nodes[-1]) and bool(_convolutions(traced, nodes))


def _split_run(traced: fx.GraphModule, run: Sequence[Step]) -> Iterator[Piece]:
    """Cut a plain run behind each linear convolution; the stem and what follows the last one stay fixed."""
    open_steps: list[Step] = []
    for step in run:
        open_steps.append(step)
        if not _ends_linear(traced, step[1][-1]):
            continue
        stem = _stem_length(traced, open_steps)
        if stem:
            yield _piece(open_steps[:stem], "")
        body = open_steps[stem:]
        inner = _convolutions(traced, [node for _, nodes in body for node in nodes])
        yield _piece(body, "linear bottleneck" if len(inner) >= 2 else "")
        open_steps = []
    if open_steps:
        yield _piece(open_steps, "")


def _piece(steps: Sequence[Step], reason: str) -> Piece:
    return steps[0][0], [node for _, nodes in steps for node in nodes], reason


def _stem_length(traced: fx.GraphModule, steps: Sequence[Step]) -> int:
    """Steps at the start of the network that stay fixed: the first convolution with its BN and activation."""
    if steps[0][0].op != "placeholder":
        return 0
    convolutions = [i for i, (_, nodes) in enumerate(steps) if _convolutions(traced, nodes)]
    length = convolutions[1] if len(convolutions) > 1 else 0
    while length and _is_padding(traced, steps[length - 1][1][-1]):
        length -= 1
    return length


def _is_padding(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` only pads for the convolution behind it, so that no unit may end here."""
    return getattr(node.target, "__name__", "") in ("pad", "_pad") or isinstance(module_of(traced, node), nn.ZeroPad2d)


def _ends_linear(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` is a convolution, or the BN behind one, that no activation follows."""
    module = module_of(traced, node)
    if not isinstance(module, (nn.Conv2d, nn.BatchNorm2d)) or len(shape_of(node)) != 4:
        return False
    return not any(
        isinstance(module_of(traced, user), nn.BatchNorm2d) or is_activation(traced, user) for user in node.users
    )


def _convolutions(traced: fx.GraphModule, nodes: Sequence[fx.Node]) -> list[fx.Node]:
    return [node for node in nodes if isinstance(module_of(traced, node), nn.Conv2d)]


def _segment(traced: fx.GraphModule, entry: fx.Node, nodes: list[fx.Node], reason: str) -> Segment:
    module = subgraph(traced, entry, nodes, nodes[-1])
    in_shape, out_shape = shape_of(entry)[1:], shape_of(nodes[-1])[1:]
    elastic = bool(reason) and len(in_shape) == 3 and len(out_shape) == 3
    return Segment(module, elastic, in_shape, out_shape, reason or "no inner channels between two cuts")

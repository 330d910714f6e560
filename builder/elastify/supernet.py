"""The elastic supernet: the oracle's own path, frozen, with trainable alternatives at each unit."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from builder.elastify.cost import multiply_accumulates
from builder.elastify.narrow import channel_importance, narrow
from builder.elastify.refit import linear_exit, node_values, refit_projection
from builder.elastify.trace import trace
from builder.elastify.units import Segment, find_segments
from edge_runtime.errors import UsageError
from edge_runtime.gates import GateGroup, Gates, GateSpace

__all__ = ["Alternative", "ElasticOptions", "Features", "Supernet", "Unit", "elastify"]


@dataclass(frozen=True, slots=True)
class ElasticOptions:
    """What each unit is offered beside the original."""

    widths: tuple[float, ...] = (0.5, 0.25)
    """Ratios of inner channels of the narrower copies, in (0, 1)."""

    merged_widths: tuple[float, ...] = (1.0, 0.5)
    """Ratios of inner channels of the merged alternatives, in (0, 1]."""

    window: int = 3
    """Most units that one merged alternative replaces, 1 turns merging off."""

    skip: bool = True
    """Whether units that keep their shape may be skipped."""

    def __post_init__(self) -> None:
        if not all(0 < width < 1 for width in self.widths) or not all(0 < width <= 1 for width in self.merged_widths):
            raise UsageError(f"widths {self.widths} and merged widths {self.merged_widths} must lie in (0, 1]")
        if not 1 <= self.window <= 4:
            raise UsageError(f"a window spans 1 to 4 units, got {self.window}")


@dataclass(frozen=True, slots=True)
class Alternative:
    """One way to compute a unit, or a window that starts at it."""

    label: str
    """Name in the gate group, e.g. ``original``, ``narrow50``, ``skip``, ``merged2``."""

    span: int
    """Units that it replaces."""

    macs: int
    """Multiply-accumulates for one image."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of the supernet and what was put beside it."""

    segment: int
    """Index of its segment in `Supernet.segments`."""

    alternatives: tuple[Alternative, ...]
    """The original first."""


@dataclass(frozen=True, slots=True)
class Features:
    """What one run of a subnet gave, by unit."""

    outputs: tuple[Tensor, ...]
    """The network's outputs, flattened in order."""

    entries: tuple[Tensor | None, ...]
    """What entered each unit; None inside a merged window, but for its first unit."""

    exits: tuple[Tensor | None, ...]
    """The value behind each unit; None inside a merged window, but for its last unit."""

    values: Mapping[int, Tensor]
    """Every value that `Supernet.resume` may need again; the keys are the supernet's own."""


class Supernet(nn.Module):
    """Segments in order; elastic ones hold a list of alternatives, of which the gate vector picks one.

    `forward(x, gates)` maps images [N, C, H, W] to the oracle's outputs [N, K]. The default gates run the oracle's own
    operations with its own weights: the result is bit-equal. Originals and fixed pieces are frozen and stay in eval
    mode whatever `train` is told.
    """

    def __init__(self, segments: Sequence[Segment], units: Sequence[Unit], bodies: Sequence[nn.ModuleList]) -> None:
        super().__init__()
        self.segments = tuple(segments)
        self.units = tuple(units)
        self.unit_of = {unit.segment: index for index, unit in enumerate(units)}
        self.fixed = nn.ModuleList(segment.module for segment in segments)
        self.bodies = nn.ModuleList(bodies)
        self.space = GateSpace(tuple(self._group(index) for index in range(len(units))))
        self._fixed_macs = sum(multiply_accumulates(m) for i, m in enumerate(self.fixed) if i not in self.unit_of)
        self.fixed.requires_grad_(False)
        self.train(False)

    def _group(self, index: int) -> GateGroup:
        alternatives = self.units[index].alternatives
        labels = tuple(alternative.label for alternative in alternatives)
        return GateGroup(f"unit{index}", "choice", labels, tuple(alternative.span for alternative in alternatives))

    def train(self, mode: bool = True) -> Supernet:
        """Switch the alternatives only; the oracle's own pieces stay in eval mode."""
        super().train(mode)
        self.fixed.eval()
        return self

    def alternative(self, unit: int, value: int) -> nn.Module:
        """The module that computes alternative `value` of a unit; 0 is the frozen original."""
        return self.fixed[self.units[unit].segment] if value == 0 else self.bodies[unit][value - 1]

    def forward(self, inputs: Tensor | Sequence[Tensor], gates: Gates) -> Tensor:
        """Outputs of the subnet that `gates` names, in the oracle's own structure."""
        return self.features(inputs, gates).outputs[0]

    def features(self, inputs: Tensor | Sequence[Tensor], gates: Gates) -> Features:
        """Run a subnet and keep the value at each unit's entry and exit.

        Args:
            inputs: The oracle's one input [N, ...], or all of them in order.
            gates: The subnet.
        """
        first = inputs if isinstance(inputs, Tensor) else inputs[0]
        return self._run({0: first}, 0, gates)

    def resume(self, known: Features, unit: int, gates: Gates) -> Features:
        """Run only `unit` and what follows it, on the values that an earlier run left before it.

        Args:
            known: A run of the same inputs; its gates and `gates` agree on every unit before `unit`.
            unit: The first unit to compute; not inside a merged window of either run.
            gates: The subnet.
        """
        first = self.units[unit].segment
        return self._run({key: value for key, value in known.values.items() if key <= first}, first, gates)

    def _run(self, values: dict[int, Tensor], first: int, gates: Gates) -> Features:
        """Run the segments from `first` on; `values` holds what enters each segment that was reached."""
        index = first
        while index < len(self.fixed):
            unit = self.unit_of.get(index)
            module = self.fixed[index] if unit is None else self.alternative(unit, int(gates.values[unit]))
            span = 1 if unit is None else self.units[unit].alternatives[int(gates.values[unit])].span
            values[index + span] = module(values[index])
            index += span
        entries = tuple(values.get(unit.segment) for unit in self.units)
        exits = tuple(values.get(unit.segment + 1) for unit in self.units)
        return Features((values[len(self.fixed)],), entries, exits, values)

    def macs(self, gates: Gates) -> int:
        """Multiply-accumulates of one image through a subnet."""
        chosen = zip(self.units, gates.values, gates.active, strict=True)
        return self._fixed_macs + sum(unit.alternatives[int(value)].macs for unit, value, on in chosen if on)


def elastify(
    model: nn.Module, images: torch.Tensor, options: ElasticOptions | None = None, *, seed: int = 0
) -> Supernet:
    """Turn a trained CNN into a supernet whose default path is the model itself.

    Args:
        model: the oracle; traced in eval mode, left as it was.
        images: a few dozen to a few hundred unlabelled, preprocessed images [N, C, H, W], for importance and the
            closed-form initialisation.
        options: what each unit is offered.
        seed: chooses sampled positions of the closed-form fits.

    Raises:
        UsageError: the model cannot be traced, or has no unit that can be made elastic.
    """
    options = options or ElasticOptions()
    segments = find_segments(trace(model, images[:2]))
    features = _teacher_features(segments, images)
    windows = _windows(segments, options.window)
    units: list[Unit] = []
    bodies: list[nn.ModuleList] = []
    for index, segment in enumerate(segments):
        if not segment.elastic:
            continue
        alternatives, modules = _offer(segments, index, windows.get(index, 1), features, options, seed)
        if len(alternatives) > 1 or index in _covered(windows):
            units.append(Unit(index, tuple(alternatives)))
            bodies.append(nn.ModuleList(modules))
    if not units:
        raise UsageError("no unit of this network can be made elastic", hint="it has no residual or bottleneck blocks")
    return Supernet(segments, units, bodies)


def _covered(windows: dict[int, int]) -> set[int]:
    return {index for start, span in windows.items() for index in range(start, start + span)}


def _windows(segments: Sequence[Segment], longest: int) -> dict[int, int]:
    """Non-overlapping windows of 2 to `longest` neighbouring units inside a stage: start -> span.

    A stage begins at a unit that changes the shape; the units behind it keep it, so a copy of the window's first unit
    maps the window's input shape to its output shape.
    """
    windows: dict[int, int] = {}
    index = 0
    while index < len(segments):
        stop = index + 1
        if segments[index].elastic:
            while stop < len(segments) and segments[stop].elastic and segments[stop].keeps_shape:
                stop += 1
            windows.update(_chunks(index, stop - index, longest))
        index = stop
    return windows


def _chunks(start: int, length: int, longest: int) -> dict[int, int]:
    chunks: dict[int, int] = {}
    while length >= 2 and longest >= 2:
        span = length if length <= longest else max(2, min(longest, length // 2))
        chunks[start] = span
        start, length = start + span, length - span
    return chunks


def _teacher_features(segments: Sequence[Segment], images: torch.Tensor) -> list[list[torch.Tensor]]:
    """For each segment the batches that enter it; one more entry for the network's output."""
    batches = list(images.split(32))
    features = [batches]
    with torch.no_grad():
        for segment in segments:
            batches = [segment.module(batch) for batch in batches]
            features.append(batches)
    return features


def _offer(
    segments: Sequence[Segment],
    index: int,
    window: int,
    features: Sequence[Sequence[torch.Tensor]],
    options: ElasticOptions,
    seed: int,
) -> tuple[list[Alternative], list[nn.Module]]:
    """All alternatives of one unit, the original first, each initialised in closed form where that is possible."""
    segment, inputs = segments[index], features[index]
    original = multiply_accumulates(segment.module)
    alternatives, modules = [Alternative("original", 1, original)], []
    importance = channel_importance(segment.module, inputs)
    own_exits = _linear_exits(segment, inputs)

    def add(label: str, span: int, module: nn.Module) -> None:
        alternatives.append(Alternative(label, span, multiply_accumulates(module)))
        modules.append(module)

    for width in sorted(options.widths, reverse=True):
        copied = narrow(segment.module, width, importance)
        if copied is not None and multiply_accumulates(copied) < alternatives[-1].macs:
            refit_projection(copied, inputs, own_exits, seed)
            add(f"narrow{round(100 * width)}", 1, copied)
    if options.skip and segment.keeps_shape:
        add("skip", 1, nn.Identity())
    if window == 1:
        return alternatives, modules
    last = index + window - 1
    last_exits = _linear_exits(segments[last], features[last])
    for width in options.merged_widths:
        merged = _trainable_copy(segment.module) if width == 1.0 else narrow(segment.module, width, importance)
        if merged is not None:
            refit_projection(merged, inputs, last_exits, seed)
            add(f"merged{window}" + ("" if width == 1.0 else f"-narrow{round(100 * width)}"), window, merged)
    return alternatives, modules


def _linear_exits(segment: Segment, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What the original gives before its trailing activation, batch by batch."""
    node = linear_exit(segment.module)
    return [node_values(segment.module, batch)[node] for batch in inputs]


def _trainable_copy(module: fx.GraphModule) -> fx.GraphModule:
    result = copy.deepcopy(module)
    return result.requires_grad_(True)

"""The elastic supernet: the oracle's own path, frozen, with trainable alternatives at each unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from builder.elastify.cost import multiply_accumulates
from builder.elastify.report import ElastifyReport
from builder.elastify.segments import Program, Segment, ValueName, value_names
from builder.elastify.trace import Inputs
from edge_runtime.errors import UsageError
from edge_runtime.gates import GateGroup, Gates, GateSpace

__all__ = ["Alternative", "Features", "Supernet", "Unit"]


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

    values: Mapping[str, Tensor]
    """Every named value that was computed; what `Supernet.resume` needs again."""


class Supernet(nn.Module):
    """A program of segments; units hold a list of alternatives, of which the gate vector picks one.

    `forward(inputs, gates)` maps the oracle's inputs (one tensor [N, ...], or several in order) to its outputs. The
    default gates run the oracle's own operations with its own weights: the result is bit-equal. Originals and fixed
    pieces are frozen and stay in eval mode whatever `train` is told.
    """

    def __init__(
        self, program: Program, units: Sequence[Unit], bodies: Sequence[nn.ModuleList], report: ElastifyReport
    ) -> None:
        super().__init__()
        self.program = program
        self.segments: tuple[Segment, ...] = program.segments
        self.units = tuple(units)
        self.unit_of = {unit.segment: index for index, unit in enumerate(units)}
        self.output_names = tuple(value_names(program.structure))
        self.fixed = nn.ModuleList(segment.module for segment in program.segments)
        self.bodies = nn.ModuleList(bodies)
        self.space = GateSpace(tuple(self._group(index) for index in range(len(units))))
        self._report = report
        self._fixed_macs = sum(multiply_accumulates(m) for i, m in enumerate(self.fixed) if i not in self.unit_of)
        self.fixed.requires_grad_(False)
        self.train(False)

    def _group(self, index: int) -> GateGroup:
        alternatives = self.units[index].alternatives
        labels = tuple(alternative.label for alternative in alternatives)
        return GateGroup(f"unit{index}", "choice", labels, tuple(alternative.span for alternative in alternatives))

    def report(self) -> ElastifyReport:
        """What was made elastic, what was not, and why."""
        return self._report

    def train(self, mode: bool = True) -> Supernet:
        """Switch the alternatives only; the oracle's own pieces stay in eval mode."""
        super().train(mode)
        self.fixed.eval()
        return self

    @property
    def learns(self) -> bool:
        """Whether any alternative can be trained; skips alone cannot."""
        return any(parameter.requires_grad for parameter in self.bodies.parameters())

    def alternative(self, unit: int, value: int) -> nn.Module:
        """The module that computes alternative `value` of a unit; 0 is the frozen original."""
        return self.fixed[self.units[unit].segment] if value == 0 else self.bodies[unit][value - 1]

    def forward(self, inputs: Inputs, gates: Gates) -> Any:
        """Outputs of the subnet that `gates` names, in the oracle's own structure of tuples, lists and dicts."""
        values = self.features(inputs, gates).values
        return _rebuilt(self.program.structure, values)

    def features(self, inputs: Inputs, gates: Gates) -> Features:
        """Run a subnet and keep the value at each unit's entry and exit.

        Args:
            inputs: The oracle's one input [N, ...], or all of them in order.
            gates: The subnet.

        Raises:
            UsageError: the number of inputs is not the oracle's.
        """
        given = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
        if len(given) != len(self.program.inputs):
            raise UsageError(f"{len(given)} inputs given, the network takes {', '.join(self.program.inputs)}")
        return self._run(dict(zip(self.program.inputs, given, strict=True)), 0, gates)

    def resume(self, known: Features, unit: int, gates: Gates) -> Features:
        """Run only `unit` and what follows it, on the values that an earlier run left before it.

        Args:
            known: A run of the same inputs; its gates and `gates` agree on every unit before `unit`.
            unit: The first unit to compute; not inside a merged window of either run.
            gates: The subnet.
        """
        first = self.units[unit].segment
        before = {name for segment in self.segments[:first] for name in segment.outputs} | {*self.program.inputs}
        return self._run({name: value for name, value in known.values.items() if name in before}, first, gates)

    def _run(self, values: dict[str, Tensor], first: int, gates: Gates) -> Features:
        """Run the segments from `first` on; `values` holds everything computed before."""
        index = first
        while index < len(self.segments):
            unit = self.unit_of.get(index)
            module = self.fixed[index] if unit is None else self.alternative(unit, int(gates.values[unit]))
            span = 1 if unit is None else self.units[unit].alternatives[int(gates.values[unit])].span
            result = module(*(values[name] for name in self.segments[index].inputs))
            names = self.segments[index + span - 1].outputs
            values.update(zip(names, result if len(names) > 1 else (result,), strict=True))
            index += span
        segments = [self.segments[unit.segment] for unit in self.units]
        return Features(
            tuple(values[name] for name in self.output_names),
            tuple(values.get(segment.inputs[0]) for segment in segments),
            tuple(values.get(segment.outputs[0]) for segment in segments),
            values,
        )

    def macs(self, gates: Gates) -> int:
        """Multiply-accumulates of one image through a subnet."""
        chosen = zip(self.units, gates.values, gates.active, strict=True)
        return self._fixed_macs + sum(unit.alternatives[int(value)].macs for unit, value, on in chosen if on)


def _rebuilt(structure: Any, values: Mapping[str, Tensor]) -> Any:
    """The structure with the values in the place of their names, in plain containers."""
    if isinstance(structure, ValueName):
        return values[structure]
    if isinstance(structure, Mapping):
        return {key: _rebuilt(item, values) for key, item in structure.items()}
    if isinstance(structure, tuple) and hasattr(structure, "_fields"):
        return type(structure)(*(_rebuilt(item, values) for item in structure))
    if isinstance(structure, (list, tuple)):
        items = [_rebuilt(item, values) for item in structure]
        return tuple(items) if isinstance(structure, tuple) else items
    return structure

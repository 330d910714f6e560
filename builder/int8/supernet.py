"""A trained supernet whose alternatives are stored in 8 bits, and that can compute each unit in 8 bits too.

Beside the frozen originals there is a copy of each in 8 bits. The weights of a trained alternative are kept in 8 bits
alone, for two alternatives: one computes in float32 with what they stand for, one in 8 bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from builder.elastify import ElastifyReport, Supernet
from builder.elastify.cost import storage_bytes
from builder.elastify.supernet import Alternative, Unit
from builder.elastify.trace import Inputs
from builder.int8.quantise import Quantised, quantised
from edge_runtime.errors import UsageError
from edge_runtime.gates import IN_8_BITS, is_in_8_bits

__all__ = ["with_int8"]

_BATCH = 32


@dataclass(frozen=True, slots=True)
class _Copy:
    unit: int
    source: int
    """The alternative that it is a copy of."""

    made: Quantised
    bytes: int
    """What having it adds to the storage; below 0 where the source is stored in 8 bits then."""


def with_int8(supernet: Supernet, images: Inputs, *, storage_ratio: float) -> Supernet:
    """The supernet with an alternative in 8 bits behind each original and alternative; it trains no more.

    Ranges are those of the original's own features, and no label is used. Where not all originals' copies fit into the
    storage, those come first that compute the most per byte. The default gates still are the network.

    Args:
        supernet: trained, on the CPU; its modules are shared with the result.
        images: a few dozen to a few hundred unlabelled, preprocessed images [N, C, H, W], or all inputs in order.
        storage_ratio: most bytes of the result as a multiple of the oracle's.

    Raises:
        UsageError: it has alternatives in 8 bits already.
    """
    if any(is_in_8_bits(label) for group in supernet.space.groups for label in group.labels):
        raise UsageError("the supernet has alternatives in 8 bits already", hint="give the one that was trained")
    supernet.eval()
    copies = _copies(supernet, _entries(supernet, images))
    report = supernet.report()
    room = storage_ratio * report.oracle_bytes - storage_bytes(supernet)
    chosen = _chosen(copies, supernet, room)
    units, bodies = [], []
    for index, unit in enumerate(supernet.units):
        own = {copy.source: copy for copy in chosen if copy.unit == index}
        alternatives, modules = _extended(unit, list(supernet.bodies[index]), own)
        units.append(Unit(unit.segment, tuple(alternatives)))
        bodies.append(nn.ModuleList(modules))
    return Supernet(supernet.program, units, bodies, _extended_report(report, units, chosen))


def _entries(supernet: Supernet, images: Inputs) -> list[list[Tensor]]:
    """For each unit the batches that enter it in the oracle."""
    given = (images,) if isinstance(images, Tensor) else tuple(images)
    entries: list[list[Tensor]] = [[] for _ in supernet.units]
    with torch.no_grad():
        for batch in zip(*(value.split(_BATCH) for value in given), strict=True):
            found = supernet.features(batch, supernet.space.default).entries
            for kept, value in zip(entries, found, strict=True):
                assert value is not None
                kept.append(value)
    return entries


def _copies(supernet: Supernet, entries: Sequence[Sequence[Tensor]]) -> list[_Copy]:
    copies = []
    for index, unit in enumerate(supernet.units):
        for value in range(len(unit.alternatives)):
            module = supernet.alternative(index, value)
            stays = value == 0
            made = quantised(module, entries[index], stays=stays) if isinstance(module, fx.GraphModule) else None
            if made is not None:
                copies.append(_Copy(index, value, made, _added_bytes(module, made, value)))
    return copies


def _added_bytes(module: nn.Module, made: Quantised, value: int) -> int:
    stored = [module, made.coded] if value == 0 else [made.coded, made.decoded]
    return storage_bytes(nn.ModuleList(part for part in stored if part is not None)) - storage_bytes(module)


def _chosen(copies: Sequence[_Copy], supernet: Supernet, room: float) -> list[_Copy]:
    def urgency(copy: _Copy) -> tuple[bool, float]:
        macs = supernet.units[copy.unit].alternatives[copy.source].macs
        return copy.bytes <= 0, macs / max(1, copy.bytes)

    chosen = []
    for copy in sorted(copies, key=urgency, reverse=True):
        if copy.bytes <= max(0.0, room):  # what saves storage is taken however little there is
            chosen.append(copy)
            room -= copy.bytes
    return chosen


def _extended(
    unit: Unit, bodies: Sequence[nn.Module], own: dict[int, _Copy]
) -> tuple[list[Alternative], list[nn.Module]]:
    """Alternatives and modules of a unit, each copy behind its source, so that those of one unit stay in front."""
    alternatives, modules = list[Alternative](), list[nn.Module]()
    for value, alternative in enumerate(unit.alternatives):
        alternatives.append(alternative)
        if value:
            modules.append(own[value].made.decoded if value in own else bodies[value - 1])
        if value in own and own[value].made.coded is not None:
            label = f"{alternative.label}-{IN_8_BITS}" if value else IN_8_BITS
            alternatives.append(dataclasses.replace(alternative, label=label))
            modules.append(own[value].made.coded)
    return alternatives, modules


def _extended_report(report: ElastifyReport, units: Sequence[Unit], chosen: Sequence[_Copy]) -> ElastifyReport:
    labels = {f"unit{index}": tuple(a.label for a in unit.alternatives[1:]) for index, unit in enumerate(units)}
    rows = tuple(dataclasses.replace(row, alternatives=labels.get(row.name, row.alternatives)) for row in report.units)
    held = report.supernet_bytes + sum(copy.bytes for copy in chosen)
    ways = [1] * (len(units) + 1)
    for index in reversed(range(len(units))):
        ways[index] = sum(ways[index + alternative.span] for alternative in units[index].alternatives)
    return dataclasses.replace(report, units=rows, supernet_bytes=held, subnets=float(ways[0]))

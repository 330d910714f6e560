"""Put a report together: what was offered, what was chosen, and in one clause each why there is not more."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import fx, nn

from builder.elastify.channels import channel_plan
from builder.elastify.cost import multiply_accumulates, storage_bytes
from builder.elastify.offer import Offer, Window
from builder.elastify.report import ElastifyReport, UnitReport
from builder.elastify.segments import Program, Segment

__all__ = ["report_of"]


def report_of(
    program: Program, units: Sequence[int], offers: Sequence[Offer], chosen: Sequence[Offer], windows: Sequence[Window]
) -> ElastifyReport:
    """Report on a program whose segments `units` were offered `offers` and got `chosen`."""
    covered = {offer.unit + step for offer in chosen for step in range(offer.span)}
    macs = [multiply_accumulates(segment.module) for segment in program.segments]
    names = {number: f"unit{index}" for index, number in enumerate(sorted(covered))}
    rows = []
    for number, index in enumerate(units):
        own = [[offer for offer in some if offer.unit == number] for some in (offers, chosen)]
        in_window = any(w.first <= number < w.first + w.span for w in windows)
        segment = program.segments[index]
        why = _why_not_more(segment, *own, in_window=in_window)
        rows.append(_row(names.get(number, ""), segment, macs[index], own[1], why))
    held = storage_bytes(nn.ModuleList(segment.module for segment in program.segments))
    unit_macs = [macs[index] for index in units]
    return ElastifyReport(
        units=tuple(rows),
        total_macs=sum(macs),
        elastic_macs=sum(macs[units[number]] for number in covered),
        least_macs=sum(macs) - sum(unit_macs) + _least(unit_macs, chosen),
        oracle_bytes=held,
        supernet_bytes=held + sum(offer.bytes for offer in chosen),
        subnets=float(_count(len(units), chosen)),
        fixed=_fixed(program, units, macs),
    )


def _row(name: str, segment: Segment, macs: int, got: Sequence[Offer], why: str) -> UnitReport:
    layers = [str(node.target) for node in segment.module.graph.nodes if node.op == "call_module"]
    labels = tuple(offer.label for offer in got)
    first = layers[0] if layers else ""
    return UnitReport(name, segment.reason, first, segment.in_shape, segment.out_shape, macs, labels, why)


def _why_not_more(segment: Segment, offered: Sequence[Offer], got: Sequence[Offer], *, in_window: bool) -> str:
    clauses = []
    if not any(offer.label.startswith("narrow") for offer in offered):
        clauses.append(_why_not_narrow(segment.module))
    if not segment.keeps_shape:
        clauses.append("no skip: the shape changes")
    if not in_window:
        clauses.append("not merged: no neighbour keeps its shape, or their values are read elsewhere")
    left_out = [offer.label for offer in offered if offer not in got]
    if left_out:
        clauses.append(f"no room in the storage for {', '.join(left_out)}")
    return "; ".join(clauses)


def _why_not_narrow(module: fx.GraphModule) -> str:
    if channel_plan(module).widths:
        return "not narrower: too few inner channels"
    return "not narrower: its channels are tied to its input or output"


def _least(unit_macs: Sequence[int], chosen: Sequence[Offer]) -> int:
    """Compute of the cheapest choice for all units."""
    least = [0] * (len(unit_macs) + 1)
    for number in reversed(range(len(unit_macs))):
        ways = [offer.macs + least[number + offer.span] for offer in chosen if offer.unit == number]
        least[number] = min([unit_macs[number] + least[number + 1], *ways])
    return least[0]


def _count(units: int, chosen: Sequence[Offer]) -> int:
    """Number of different subnets."""
    counts = [1] * (units + 1)
    for number in reversed(range(units)):
        own = [offer for offer in chosen if offer.unit == number]
        counts[number] = counts[number + 1] + sum(counts[number + offer.span] for offer in own)
    return counts[0]


def _fixed(program: Program, units: Sequence[int], macs: Sequence[int]) -> str:
    """Where the compute is that no unit holds."""
    total = max(1, sum(macs))
    if not units:
        return "everything, no unit was found"
    first, last = units[0], units[-1]
    inside = set(units)
    places = {"before the first unit (stem)": range(first), "between units": range(first, last + 1)}
    places["behind the last unit (head)"] = range(last + 1, len(macs))
    shares = {name: math.fsum(macs[i] for i in where if i not in inside) / total for name, where in places.items()}
    return ", ".join(f"{share:.1%} {name}" for name, share in shares.items() if share) or "nothing that computes"

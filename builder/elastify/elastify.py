"""From a trained network and a few unlabelled inputs to a supernet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from builder.elastify.budget import select_offers
from builder.elastify.cost import multiply_accumulates, storage_bytes
from builder.elastify.offer import Offer, Window, find_windows, offers_of
from builder.elastify.options import ElasticOptions
from builder.elastify.refit import exit_node, linear_exit, node_values, refit_projection
from builder.elastify.report import ElastifyReport, NothingElasticError
from builder.elastify.reporting import report_of
from builder.elastify.segments import Program, find_program, value_names
from builder.elastify.supernet import Alternative, Supernet, Unit
from builder.elastify.trace import Inputs, trace

__all__ = ["elastify"]

_BATCH = 32


def elastify(model: nn.Module, inputs: Inputs, options: ElasticOptions | None = None, *, seed: int = 0) -> Supernet:
    """Turn a trained CNN into a supernet whose default path is the model itself.

    Args:
        model: the oracle; traced in eval mode, left as it was.
        inputs: a few dozen to a few hundred unlabelled, preprocessed images [N, C, H, W] (or all inputs of the network
            in order, each [N, ...]), for importance and the closed-form initialisation.
        options: what each unit is offered.
        seed: chooses sampled positions of the closed-form fits.

    Raises:
        UsageError: the model cannot be traced. `NothingElasticError`, a kind of it that carries the report, where no
            unit can be made elastic.
    """
    options = options or ElasticOptions()
    given = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    program = find_program(trace(model, tuple(value[:2] for value in given)))
    units = [index for index, segment in enumerate(program.segments) if segment.elastic]
    windows = find_windows(program.segments, units, options.window, _tapped(program))
    entries = _unit_entries(program, units, given)
    offers = _all_offers(program, units, windows, entries, options)
    chosen = select_offers(
        offers, [multiply_accumulates(program.segments[unit].module) for unit in units], _room(program, options)
    )
    report = report_of(program, units, offers, chosen, windows)
    if not chosen:
        raise NothingElasticError(
            "no unit of this network can be made elastic",
            report=report,
            hint="it has no residual regions, bottlenecks or runs of convolutions with inner channels to spare",
        )
    for offer in chosen:
        if isinstance(offer.module, fx.GraphModule):
            last = offer.unit + offer.span - 1
            _fit(offer.module, entries[offer.unit], program.segments[units[last]].module, entries[last], seed)
    return _supernet(program, units, chosen, report)


def _room(program: Program, options: ElasticOptions) -> float:
    """Bytes that the alternatives may take."""
    return (options.storage_ratio - 1) * storage_bytes(nn.ModuleList(s.module for s in program.segments))


def _tapped(program: Program) -> set[str]:
    """Values that more than one segment reads, or that the network returns."""
    read = [name for segment in program.segments for name in segment.inputs]
    return {name for name in read if read.count(name) > 1} | set(value_names(program.structure))


def _unit_entries(program: Program, units: Sequence[int], given: Sequence[Tensor]) -> list[list[Tensor]]:
    """For each unit the batches that enter it in the oracle."""
    entries: list[list[Tensor]] = [[] for _ in units]
    for batch in zip(*(value.split(_BATCH) for value in given), strict=True):
        values = dict(zip(program.inputs, batch, strict=True))
        for index, segment in enumerate(program.segments):
            with torch.no_grad():
                result = segment.module(*(values[name] for name in segment.inputs))
            values.update(zip(segment.outputs, result if len(segment.outputs) > 1 else (result,), strict=True))
            if segment.elastic:
                entries[units.index(index)].append(values[segment.inputs[0]])
    return entries


def _all_offers(
    program: Program,
    units: Sequence[int],
    windows: Sequence[Window],
    entries: Sequence[Sequence[Tensor]],
    options: ElasticOptions,
) -> list[Offer]:
    spans = {window.first: window.span for window in windows}
    offers: list[Offer] = []
    for number, index in enumerate(units):
        offers += offers_of(number, program.segments[index], entries[number], spans.get(number, 1), options)
    return offers


def _fit(
    alternative: fx.GraphModule,
    inputs: Sequence[Tensor],
    last: fx.GraphModule,
    last_inputs: Sequence[Tensor],
    seed: int,
) -> None:
    """Refit an alternative's projection to what the original of its last unit gives."""
    ends_bare = linear_exit(alternative) is exit_node(alternative)
    if linear_exit(last) is exit_node(last) and not ends_bare:
        return  # it ends in an activation that the original does not have
    node = exit_node(last) if ends_bare else linear_exit(last)
    targets = [node_values(last, batch)[node] for batch in last_inputs]
    refit_projection(alternative, inputs, targets, seed)


def _supernet(program: Program, units: Sequence[int], chosen: Sequence[Offer], report: ElastifyReport) -> Supernet:
    """Units with alternatives, and those that a merged one covers; the others stay fixed pieces."""
    covered = {offer.unit + step for offer in chosen for step in range(offer.span)}
    kept: list[Unit] = []
    bodies: list[nn.ModuleList] = []
    for number, index in enumerate(units):
        if number in covered:
            own = [offer for offer in chosen if offer.unit == number]
            original = Alternative("original", 1, multiply_accumulates(program.segments[index].module))
            kept.append(Unit(index, (original, *(Alternative(o.label, o.span, o.macs) for o in own))))
            bodies.append(nn.ModuleList(offer.module for offer in own))
    return Supernet(program, kept, bodies, report)

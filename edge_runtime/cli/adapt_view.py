"""How an adaptation is shown: the candidates as a table, what was chosen and why, and what weakens the result."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING

from edge_runtime.cli.console import Console, Style
from edge_runtime.cli.device import DeviceRecord, busy_note, device_line
from edge_runtime.cli.tables import Column, render_table, shorten

if TYPE_CHECKING:
    from edge_runtime.adaptation import AdaptStatus, Candidate
    from edge_runtime.gates import Gates
    from edge_runtime.inputs import Samples
    from edge_runtime.model import EdgeModel
    from edge_runtime.objectives import Score

__all__ = ["FATES", "notes", "show"]

_GATES_WIDTH = 33
_TEXT_WIDTH = 79
_FEW_IMAGES, _LITTLE_VARIETY, _LITTLE_LEFT = 32, 0.34, 0.5
_UNSTEADY = 1.2
"""Expected over measured p95 of the full subnet from which the limit and the table seem to contradict each other."""

_STYLES: dict[str, Style] = {"chosen": "good", "kept": "good", "over budget": "dim", "fell early": "dim"}

FATES = {
    "chosen": "answers from now on",
    "kept": "was active, and the images show nothing that is surely better",
    "lost": "likely worth less than the chosen one; its own score may be luck",
    "worse": "surely worse than the chosen one on these images",
    "indistinguishable": "has the highest likely quality, and the images cannot tell it from the cheaper or active one",
    "not trusted": "the bundle expects far more damage on clean images than its latency is worth",
    "over budget": "measured above the limit",
    "uncertain": "measured within the limit, but its p95 is not sure to be",
    "reference": "the full subnet, above the limit",
    "unusable": "its outputs were not finite, or of a wrong shape, when it answered frames",
    "unmeasured": "evaluated on the images, for the frontier; its time is predicted (~)",
    "fell early": "cut on the first images",
}
"""What became of candidates, for people."""


def show(status: AdaptStatus, model: EdgeModel, device: DeviceRecord, console: Console, *, explain: bool) -> None:
    """Print the outcome; to explain it, every candidate that was looked at and why it fell."""
    console.line(console.paint(f"{model.bundle.manifest.name} on {device_line(device, model.threads)}", "bold"))
    images = f"{status.samples} {'' if status.labelled else 'un'}labelled image{'s' if status.samples != 1 else ''}"
    console.line(f"{images}, budget {_budget_text(status)}, searched in {status.seconds:.1f} s")
    if status.taken_up:
        console.line(f"the search went on: {status.taken_up} of its evaluations are from before a restart")
    console.line()
    shown = _in_order(status, explain=explain)
    for line in _table(console, shown, status, explain=explain):
        console.line(line)
    console.line()
    console.line(f"{console.paint('chosen', 'good')}  {status.active}")
    for line in _beside_the_full(status, model.space.default):
        console.line(f"        {line}")
    for line in textwrap.wrap(status.reason, _TEXT_WIDTH, initial_indent="why     ", subsequent_indent=" " * 8):
        console.line(line)
    if explain:
        console.line()
        for fate in dict.fromkeys(candidate.fate for candidate in shown):
            console.line(console.paint(f"  {fate:<17} {FATES[fate]}", "dim"))


def _in_order(status: AdaptStatus, *, explain: bool) -> tuple[Candidate, ...]:
    """The measured candidates, fastest first; to explain, the others behind them."""
    measured = sorted((c for c in status.candidates if c.score.measured), key=lambda c: c.score.latency_ms)
    return (*measured, *(c for c in status.candidates if explain and not c.score.measured))


def _beside_the_full(status: AdaptStatus, full: Gates) -> list[str]:
    """What the chosen subnet takes and gives, and what the full one does; nothing of what was not measured."""
    chosen, whole = _measured(status, status.active), _measured(status, full)
    if chosen is None or whole is None:
        return []
    lines = [
        f"p95 {chosen.latency_ms:.2f} ms, full {whole.latency_ms:.2f}; "
        f"{_quality_name(status)} {chosen.quality:.3f}, full {whole.quality:.3f}"
    ]
    if status.budget.memory_mib is not None and chosen.peak_bytes is not None:
        lines.append(f"peak memory {chosen.peak_bytes / 2**20:.0f} MiB")
    return lines


def _budget_text(status: AdaptStatus) -> str:
    """The budget, and for a share of the full subnet's time what it is a share of."""
    if status.budget.fraction is None or status.limit_ms is None or status.full_latency_ms is None:
        return str(status.budget)
    full = f"full subnet's {status.full_latency_ms:.2f} ms (expected p95)"
    others = replace(status.budget, fraction=None)
    more = f", {others}" if others.to_json() else ""
    return f"{status.budget.fraction:.0%} of the {full} = {status.limit_ms:.2f} ms{more}"


def _table(console: Console, candidates: tuple[Candidate, ...], status: AdaptStatus, *, explain: bool) -> list[str]:
    """Candidates as a table: gates, p95, quality with its interval, what became of each, and on request why."""
    mark = console.symbol("◄", "<")
    columns = [
        Column("subnet", "left"),
        Column("p95 ms"),
        Column(_quality_name(status)),
        Column("95 % interval"),
        Column("", "left"),
        *([Column("why", "left")] if explain else []),
    ]
    rows = [
        [
            shorten(str(candidate.score.gates), _GATES_WIDTH),
            f"{candidate.score.latency_ms:.2f}{'' if candidate.score.measured else '~'}",
            f"{candidate.score.quality:.3f}",
            f"{candidate.score.low:.3f} to {candidate.score.high:.3f}",
            candidate.fate + (f" {mark}" if candidate.score.gates == status.active else ""),
            *([candidate.reason] if explain else []),
        ]
        for candidate in candidates
    ]
    return render_table(console, columns, rows, [_STYLES.get(candidate.fate, "") for candidate in candidates])


def notes(status: AdaptStatus, model: EdgeModel, samples: Samples, device: DeviceRecord) -> list[str]:
    """What weakens the result."""
    found = [model.stats().state, busy_note(device)]
    if samples.skipped:
        more = f", and {len(samples.skipped) - 1} more" if len(samples.skipped) > 1 else ""
        found.append(f"note: left out: {samples.skipped[0]}{more}")
    if status.samples < _FEW_IMAGES:
        found.append(f"note: {status.samples} images tell little; give 64 or more")
    elif status.variety < _LITTLE_VARIETY:
        named = "the labels name" if status.labelled else "the full subnet names"
        found.append(f"note: {named} hardly more than one class for these images: the choice follows the bundle's own")
    chosen, full = _measured(status, status.active), _measured(status, model.space.default)
    if chosen and full and chosen.quality < _LITTLE_LEFT * full.quality:
        found.append(
            f"note: within this budget little is left of the model: {_quality_name(status)} {chosen.quality:.3f}, "
            f"full {full.quality:.3f}"
        )
    expected_ms = status.full_latency_ms or 0.0
    if status.budget.fraction is not None and full and expected_ms > _UNSTEADY * full.latency_ms:
        found.append(
            f"note: the machine was busy: by all runs of all subnets a p95 of {expected_ms:.2f} ms is expected of the "
            f"full one, whose own had {full.latency_ms:.2f}; the budget is a share of the former"
        )
    return [note for note in found if note]


def _measured(status: AdaptStatus, gates: Gates) -> Score | None:
    """The score of a subnet that was measured in this search."""
    return next((c.score for c in status.candidates if c.score.gates == gates and c.score.measured), None)


def _quality_name(status: AdaptStatus) -> str:
    return "accuracy" if status.labelled else "agreement"

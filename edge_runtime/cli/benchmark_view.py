"""What `nnf-edge benchmark` shows: the table, and the same as JSON with every raw sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_runtime.cli.console import Console, Style
from edge_runtime.cli.tables import Column, render_table, shorten
from edge_runtime.objectives import RUNS_NEEDED, Budget, Measurement, percentile

if TYPE_CHECKING:
    from edge_runtime.backends import SessionOptions
    from edge_runtime.bundle import Bundle

__all__ = ["Load", "Row", "fits", "print_table", "result"]

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Load:
    """What opening the session cost."""

    init_ms: float
    first_run_ms: float
    added_bytes: int | None
    form: str
    """Which running form it is, and why."""


@dataclass(frozen=True, slots=True)
class Row:
    """One subnet of the table."""

    name: str
    measurement: Measurement
    memory_bytes: int | None
    """Predicted, of a process that serves it; None where this machine does not tell."""


def fits(rows: Sequence[Row], budget: Budget) -> list[bool]:
    """Whether each subnet's p95 is within the budget; one that cannot be stated is not."""
    stated = [row.measurement.percentile_ms(95) for row in rows]
    return [budget.latency_ms is None or (p95 is not None and p95 <= budget.latency_ms) for p95 in stated]


def print_table(console: Console, rows: Sequence[Row], load: Load, budget: Budget) -> None:
    """Print what was measured."""
    added = "" if load.added_bytes is None else f" (+{load.added_bytes / 2**20:.1f} MiB)"
    peak = rows[-1].measurement.peak_bytes
    console.line(
        f"loaded in {load.init_ms:.0f} ms{added}, first run {load.first_run_ms:.1f} ms, "
        f"peak of the process {'unknown' if peak is None else f'{peak / 2**20:.0f} MiB'}"
    )
    console.line(f"running form: {load.form}")
    console.line(f"{len(rows[0].measurement.latencies_ns)} runs of each subnet, interleaved; milliseconds a frame")
    console.line()
    for line in _table(console, rows, budget):
        console.line(line)
    console.line()
    width = max(len(row.name) for row in rows)
    for row in rows:
        text = shorten(str(row.measurement.gates), 70 - width)
        console.line(console.paint(f"  {row.name:<{width}}  = {text}", "dim"))
    console.line(console.paint("  spread: the middle half of the runs, as a share of the p50", "dim"))
    if rows[0].memory_bytes is not None:
        console.line(console.paint("  MiB: predicted memory of a process that serves this subnet and no other", "dim"))
    if budget.latency_ms is not None:
        console.line(console.paint(f"  fits: p95 within {budget}", "dim"))


def _table(console: Console, rows: Sequence[Row], budget: Budget) -> list[str]:
    columns = [Column("subnet", "left"), *(Column(f"p{q}") for q in PERCENTILES), Column("spread"), Column("fps")]
    cells = [_cells(row) for row in rows]
    styles: list[Style] = []
    if rows[0].memory_bytes is not None:
        columns.append(Column("MiB"))
        cells = [[*own, f"{(row.memory_bytes or 0) / 2**20:.0f}"] for own, row in zip(cells, rows, strict=True)]
    if budget.latency_ms is not None:
        columns.append(Column("fits", "left"))
        inside = fits(rows, budget)
        cells = [[*own, "yes" if fit else "NO"] for own, fit in zip(cells, inside, strict=True)]
        styles = ["good" if fit else "bad" for fit in inside]
    return list(render_table(console, columns, cells, styles))


def _cells(row: Row) -> list[str]:
    one = row.measurement
    stated = [one.percentile_ms(q) for q in PERCENTILES]
    cells = [
        f"n/a (needs {RUNS_NEEDED[q]})" if value is None else f"{value:.2f}"
        for q, value in zip(PERCENTILES, stated, strict=True)
    ]
    return [row.name, *cells, f"{_spread(one):.1%}", f"{1000 / one.p50_ms:.0f}"]


def _spread(one: Measurement) -> float:
    """Distance between the quartiles as a share of the median: how much the machine wavered."""
    ordered = sorted(one.latencies_ns)
    return (percentile(ordered, 75) - percentile(ordered, 25)) / percentile(ordered, 50)


def result(bundle: Bundle, options: SessionOptions, rows: Sequence[Row], load: Load, budget: Budget) -> dict[str, Any]:
    """The result as JSON types: what the table shows, the bounds that it leaves out, and every raw sample."""
    subnets = [
        {
            "name": row.name,
            "text": str(row.measurement.gates),
            **{f"p{q}_ms": row.measurement.percentile_ms(q) for q in PERCENTILES},
            **{f"p{q}_upper_99_ms": row.measurement.upper_percentile_ms(q) for q in PERCENTILES},
            "mean_ms": row.measurement.mean_ms,
            "spread": _spread(row.measurement),
            "fits": inside if budget.latency_ms is not None else None,
            "predicted_memory_bytes": row.memory_bytes,
            **row.measurement.to_json(),
        }
        for row, inside in zip(rows, fits(rows, budget), strict=True)
    ]
    return {
        "bundle": {"source": bundle.source, "name": bundle.manifest.name, "digest": bundle.digest},
        "session": {"options": options.key(), "threads": options.threads},
        "budget": budget.to_json(),
        "init_ms": load.init_ms,
        "first_run_ms": load.first_run_ms,
        "load_added_bytes": load.added_bytes,
        "form": load.form,
        "peak_bytes": rows[-1].measurement.peak_bytes,
        "subnets": subnets,
    }

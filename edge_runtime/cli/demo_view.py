"""How the demo looks: the frontier as bars, the race as one line a second, the result as two rows to compare."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from edge_runtime.cli.console import Console, Style
from edge_runtime.cli.race import Contestant, Lap, Phase
from edge_runtime.cli.tables import shorten

__all__ = ["Accuracy", "FrontierRow", "RaceView", "frontier_lines", "heading", "result_lines"]

_GATES_WIDTH = 20
_TIME_CELLS, _RACE_CELLS, _LATE_CELLS = 10, 15, 10
_DEADLINE_AT = 0.5
"""Where the deadline stands in a bar of the race, as a share of its width."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of labelled images that were answered rightly, with its 95 % interval."""

    mean: float
    """In [0, 1]."""

    low: float
    """In [0, 1]."""

    high: float
    """In [0, 1]."""

    def __str__(self) -> str:
        return f"{self.mean:.1%} ({self.low:.0%} to {self.high:.0%})"


@dataclass(frozen=True, slots=True)
class FrontierRow:
    """One subnet as the demo shows it."""

    gates: str
    """Text form."""

    p95_ms: float
    """Milliseconds."""

    measured: bool
    """Whether `p95_ms` was measured; else it is predicted from the measured table."""

    agreement: float
    """Quality of the search on unlabelled images, in [0, 1]."""

    accuracy: Accuracy | None
    """On the labelled images that the search did not see; None without labels."""

    mark: str = ""
    """What is special about it: full, chosen."""


def heading(console: Console, number: int, title: str, detail: str = "") -> None:
    """Begin one act of the demo."""
    console.line()
    console.line(console.paint(f"{number}  {title}", "accent") + (f"  {detail}" if detail else ""))


def frontier_lines(console: Console, rows: Sequence[FrontierRow]) -> list[str]:
    """Subnets from fast to slow: time as a bar, accuracy with its interval."""
    slowest = max(row.p95_ms for row in rows)
    width = min(_GATES_WIDTH, max(len(row.gates) for row in rows))
    labelled = any(row.accuracy for row in rows)
    title = "accuracy (95 % interval)" if labelled else "agreement with the full subnet"
    lines = [console.paint(f"   {'subnet':<{width}}  {'p95 of one image':<{_TIME_CELLS + 9}}   {title}", "dim")]
    for row in rows:
        time = f"{console.bar(row.p95_ms / slowest, _TIME_CELLS)} {row.p95_ms:5.2f} ms"
        quality = str(row.accuracy) if row.accuracy else f"{row.agreement:.1%}"
        style: Style = "good" if "chosen" in row.mark else ""
        mark = f"  {console.symbol('◄', '<')} {row.mark}" if row.mark else ""
        tilde = " " if row.measured else "~"
        lines.append(console.paint(f"   {shorten(row.gates, width):<{width}} {tilde}{time}  {quality}{mark}", style))
    return lines


class RaceView:
    """One line a lap: a bar for each contestant whose middle is the deadline, and what nnf-edge runs."""

    def __init__(self, console: Console, deadline_ms: float, shares: dict[str, float]) -> None:
        """Take the deadline and, by gates text, each subnet's share of the full subnet's time."""
        self._console = console
        self._deadline_ms = deadline_ms
        self._shares = shares

    def head(self) -> None:
        """Column titles."""
        cell = f"{'p90 of a second':<{_RACE_CELLS}} {'':>8} {'late':>4}"
        top = f"   {'':>3}  {'':<5} {'fixed full model':<{len(cell)}}  {'nnf-edge':<{len(cell)}}"
        self._console.line(self._console.paint(top.rstrip(), "dim"))
        self._console.line(self._console.paint(f"   {'s':>3}  {'CPU':<5} {cell}  {cell} runs", "dim"))

    def show(self, lap: Lap) -> None:
        """The swaps of a lap, then its line."""
        for swap in lap.swaps:
            arrow = self._console.symbol("↳", "->")
            text = f"{arrow} {swap.after}: {swap.reason.partition(';')[0]}"
            for line in textwrap.wrap(text, 79, initial_indent=" " * 8, subsequent_indent=" " * 10):
                self._console.line(self._console.paint(line, "warn"))
        busy = lap.phase == "busy"
        state = self._console.paint(f"{'BUSY' if busy else 'idle':<5}", "warn" if busy else "dim")
        cells = "  ".join(self._cell(p90, late) for p90, late in zip(lap.p90_ms, lap.late, strict=True))
        share = self._shares.get(lap.active)
        runs = "" if share is None else f"{share:4.0%}"
        self._console.line(f"   {lap.end_s:3.0f}  {state} {cells} {runs}")

    def _cell(self, p90_ms: float, late: int) -> str:
        over = p90_ms > self._deadline_ms
        bar = self._console.bar(p90_ms / self._deadline_ms * _DEADLINE_AT, _RACE_CELLS)
        middle = int(_RACE_CELLS * _DEADLINE_AT)
        if bar[middle] == " ":
            bar = bar[:middle] + self._console.symbol("┊", "|") + bar[middle + 1 :]
        text = f"{bar} {p90_ms:5.1f} ms"
        return self._console.paint(text, "bad" if over else "good") + f" {late or '-':>4}"


def result_lines(
    console: Console, contestants: Sequence[Contestant], deadline_ms: float, phases: Sequence[Phase], labelled: bool
) -> list[str]:
    """Deadline misses side by side: all frames, and the phases apart."""
    lines = []
    title = f"   {'':<16} {'frames':>6} {'late':>6} {'share':>7}  {'':<{_LATE_CELLS}} {'when busy':>9}"
    lines.append(console.paint(title + ("  answered right" if labelled else ""), "dim"))
    for contestant in contestants:
        total, late, parts = contestant.frames(), contestant.late(deadline_ms), contestant.parts
        share = late / total if total else 0.0
        busy = contestant.frames("busy")
        in_busy = f"{contestant.late(deadline_ms, 'busy') / busy:.1%}" if busy else "-"
        right = f"  {contestant.right / parts:14.1%}" if labelled and parts else ""
        bar = console.bar(share, _LATE_CELLS)
        lines.append(f"   {contestant.name:<16} {total:>6,} {late:>6,} {share:>7.1%}  {bar} {in_busy:>9}{right}")
    return lines

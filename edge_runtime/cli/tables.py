"""Text tables of one command: columns aligned, nothing drawn that does not help reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edge_runtime.cli.console import Console, Style

__all__ = ["Column", "render_table", "shorten"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column."""

    title: str
    """Heading, with the unit."""

    align: Literal["left", "right"] = "right"
    """Numbers right, words left."""


def render_table(
    console: Console,
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    styles: Sequence[Style] = (),
    indent: int = 2,
) -> list[str]:
    """Lines of a table with one heading line; `styles` colours whole rows, cells are plain text."""
    widths = [max(len(column.title), *(len(row[i]) for row in rows), 0) for i, column in enumerate(columns)]
    lines = [console.paint(_line(columns, [column.title for column in columns], widths, indent), "dim")]
    for number, row in enumerate(rows):
        style: Style = styles[number] if number < len(styles) else ""
        lines.append(console.paint(_line(columns, row, widths, indent), style))
    return lines


def shorten(text: str, width: int) -> str:
    """`text` in at most `width` characters, its middle left out where it is longer."""
    if len(text) <= width:
        return text
    keep = width - 2
    return text[: keep - keep // 2] + ".." + text[len(text) - keep // 2 :]


def _line(columns: Sequence[Column], cells: Sequence[str], widths: Sequence[int], indent: int) -> str:
    padded = [
        cell.rjust(width) if column.align == "right" else cell.ljust(width)
        for column, cell, width in zip(columns, cells, widths, strict=True)
    ]
    return (" " * indent + "  ".join(padded)).rstrip()

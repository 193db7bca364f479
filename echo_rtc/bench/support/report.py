"""How benchmarks print: a table for people, then one JSON line, the last, for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in plain text: the first column to the left, all others to the right, numbers to four digits."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[column]) for row in [list(headings), *cells]) for column in range(len(headings))]

    def line(row: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join([first, *others]).rstrip()

    return "\n".join([line(headings), "  ".join("-" * width for width in widths), *(line(row) for row in cells)])


def report(headings: Sequence[str], rows: Sequence[Sequence[object]], figures: Mapping[str, object]) -> None:
    """Writes the table and, as the last line, the figures as JSON."""
    sys.stdout.write(f"{table(headings, rows)}\n\n{json.dumps(figures)}\n")
    sys.stdout.flush()


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

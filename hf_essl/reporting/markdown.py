"""Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence

Row = Sequence[str | None]


def table(header: Sequence[str], rows: Sequence[Row]) -> str:
    """A table of the rows without a None; empty text if there are none."""
    kept = [row for row in rows if None not in row]
    lines = [[cell.replace("|", "\\|") for cell in row if cell is not None] for row in (header, *kept)]
    lines.insert(1, ["---"] * len(header))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if kept else ""

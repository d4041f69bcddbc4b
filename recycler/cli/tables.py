"""Text tables."""

from __future__ import annotations

from collections.abc import Sequence

MAX_RULE = 120  # characters


def align(rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns; an empty row becomes a rule."""
    widths = [max(len(row[index]) for row in rows if row) for index in range(len(rows[0]))]
    rule = "-" * min(sum(widths[:-1]) + 2 * len(widths) + 10, MAX_RULE)
    return "\n".join(_line(row, widths) if row else rule for row in rows)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
    return "  ".join(cells).rstrip()


def with_error(figure: tuple[float, float]) -> str:
    """A signed figure and its standard error."""
    value, error = figure
    return f"{value:+.3f} ± {error:.3f}"

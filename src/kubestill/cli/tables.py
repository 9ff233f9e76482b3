"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import click


def print_table(table: Sequence[Sequence[str]]) -> None:
    """Print rows, the first of which is the heading, with aligned columns."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())

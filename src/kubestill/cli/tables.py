"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import click

from kubestill.cli.terminal import clean


def print_table(table: Sequence[Sequence[str]]) -> None:
    """Print rows, the first of which is the heading, with aligned columns."""
    shown = [[clean(cell) for cell in row] for row in table]
    widths = [max(len(row[column]) for row in shown) for column in range(len(shown[0]))]
    for row in shown:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())

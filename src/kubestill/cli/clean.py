"""`kubestill clean`: free the space of what local runs have left."""

from __future__ import annotations

import os

import click

from kubestill.errors import counted
from kubestill.terminal import clean, echo, print_table

_SHOWN = 40


@click.command("clean")
@click.option("--output", default="runs", show_default=True, help="Folder of local runs.")
@click.option(
    "--days",
    type=click.FloatRange(min=0),
    default=7.0,
    show_default=True,
    help="Keep what was used within so many days.",
)
@click.option(
    "--keep",
    type=click.IntRange(min=0),
    default=5,
    show_default=True,
    help="Keep the newest runs of each pipeline, however old.",
)
@click.option("--yes", is_flag=True, help="Delete; without it, only show what would go.")
def clean_up(output: str, days: float, keep: int, yes: bool) -> None:
    """Delete what old local runs have left and nobody needs.

    Without --yes it only shows what would go: folders of old runs, checkpoints of training runs,
    and decoded rows in this user's cache. What a registry names stays, and so does what an active
    run may need. A training run without checkpoints begins from the start when it is run again.
    """
    from kubestill.local.cleaning import delete, find_leftovers

    found = find_leftovers(output, days=days, keep=keep)
    if not found:
        echo(f"nothing to delete: below {clean(output)} and in the cache all is in use or newer")
        return
    table = [["kind", "MB", "last used", "path"]]
    for one in found[:_SHOWN]:
        table.append(
            [
                one.kind,
                f"{one.bytes / 1e6:.1f}",
                f"{one.days:.1f} days ago",
                os.path.relpath(one.path),
            ]
        )
    print_table(table)
    if len(found) > _SHOWN:
        echo(f"and {len(found) - _SHOWN:,} smaller ones")
    total = f"{counted(len(found), 'folder')}, {sum(one.bytes for one in found) / 1e6:,.1f} MB"
    if not yes:
        echo(f"\n{total}; --yes deletes them")
        return
    delete(found)
    echo(f"\ndeleted {total}")

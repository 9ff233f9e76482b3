"""`kubestill doctor`: is everything there that a run on the cluster needs?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kubestill.cli.connection import connected

if TYPE_CHECKING:
    from kubestill.client import Api


@click.command()
@click.option("--store", default="", help="A checkpoint_uri to write to, such as gs://bucket/x.")
@click.option("--image", multiple=True, help="An image that must be there.")
@connected
def doctor(api: Api, store: str, image: tuple[str, ...]) -> None:
    """Check packages, host, access, store and images, and say what to do."""
    from kubestill.client.doctor import examine

    ok = True
    for finding in examine(api, store=store, images=image):
        ok &= finding.ok
        click.echo(f"{'✓' if finding.ok else '✗'} {finding.name}: {finding.said}")
    if not ok:
        raise click.ClickException("not everything is in order")

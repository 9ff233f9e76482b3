"""`kubestill compile`: the components and pipelines as YAML."""

from __future__ import annotations

import os

import click


@click.command("compile")
@click.option("--output", default="", help="Folder for the YAML; default: beside the code.")
@click.option("--image", default="", help="Image the copies run in (writes to dist/ by default).")
@click.option("--check", is_flag=True, help="Write nothing; fail if a file is out of date.")
def compile_assets(output: str, image: str, check: bool) -> None:
    """Write every component and pipeline to YAML.

    Without options it refreshes the files beside the code: component.yaml, pipeline.yaml and
    READMEs.
    """
    from kubestill.assets import build

    stale = [change for change in build(output or ("dist" if image else ""), image) if change.stale]
    if check and stale:
        names = "\n".join(f"  {os.path.relpath(change.path)}" for change in stale)
        raise click.ClickException(f"out of date; run `kubestill compile`:\n{names}")
    if check:
        click.echo("everything is up to date")
        return
    for change in stale:
        os.makedirs(os.path.dirname(change.path), exist_ok=True)
        with open(change.path, "w", encoding="utf-8") as file:
            file.write(change.content)
        click.echo(os.path.relpath(change.path))
    if not stale:
        click.echo("everything is up to date")

"""`kubestill compile`: the components and pipelines as YAML."""

from __future__ import annotations

import os

import click

from kubestill.cli.connection import compile_options
from kubestill.cli.size import warn_of_size
from kubestill.terminal import echo


@click.command("compile")
@click.option("--output", default="", help="Folder for the YAML; default: next to the code.")
@compile_options
@click.option("--check", is_flag=True, help="Write nothing, and fail if a file is out of date.")
def compile_assets(output: str, resources: str, image: str, gpu_image: str, check: bool) -> None:
    """Write every component and pipeline to YAML.

    Without options it refreshes the files next to the code: component.yaml, pipeline.yaml and
    READMEs. With your own images or resources it writes copies, by default to dist/.
    """
    from kubestill.assets import build
    from kubestill.assets.packages import Package

    output = output or ("dist" if image or gpu_image or resources else "")
    changes = build(output, image, gpu_image, resources)
    for change in changes:
        if change.is_pipeline:
            warn_of_size(Package(change.content))
    stale = [change for change in changes if change.stale]
    if check and stale:
        names = "\n".join(f"  {os.path.relpath(change.path)}" for change in stale)
        raise click.ClickException(f"out of date; run `kubestill compile`:\n{names}")
    if check:
        echo("everything is up to date")
        return
    for change in stale:
        os.makedirs(os.path.dirname(change.path), exist_ok=True)
        with open(change.path, "w", encoding="utf-8") as file:
            file.write(change.content)
        echo(os.path.relpath(change.path))
    if not stale:
        echo("everything is up to date")

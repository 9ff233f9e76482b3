"""`kubestill upload`: a pipeline on the cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kubestill.cli.connection import compile_options, connected
from kubestill.cli.nodes import refuse_without_trainer
from kubestill.cli.size import warn_of_size
from kubestill.terminal import echo

if TYPE_CHECKING:
    from kubestill.client import Api


@click.command()
@click.argument("pipeline")
@click.option("--name", default="", help="Name on the cluster; default: the pipeline's own.")
@click.option("--version", default="", help="Name of the version; default: from its content.")
@compile_options
@connected
def upload(
    api: Api, pipeline: str, name: str, version: str, resources: str, image: str, gpu_image: str
) -> None:
    """Upload a pipeline, unless it is there already.

    PIPELINE is a name such as `distillation`, or a compiled YAML file. A version is named by its
    content, so that uploading the same again changes nothing.
    """
    from kubestill.assets.packages import load_package
    from kubestill.client import ensure_version

    package = load_package(pipeline, image=image, gpu_image=gpu_image, resources=resources)
    warn_of_size(package)
    refuse_without_trainer(package)
    made = ensure_version(api, package, pipeline=name, version=version)
    echo(f"{made.name} {'uploaded' if made.created else 'was there already'}")
    echo(f"{api.connection.host}/#/pipelines/details/{made.pipeline_id}/version/{made.version_id}")

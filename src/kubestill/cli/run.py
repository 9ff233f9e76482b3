"""`kubestill run`: a pipeline on this machine, or on the cluster."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from kubestill.cli.connection import compile_options, connect, with_connection
from kubestill.terminal import echo

if TYPE_CHECKING:
    from kubestill.assets.packages import Package
    from kubestill.local import Run

_LONGEST_TABLE = 16
"""Most rows of a table in a summary that is shown whole."""


@click.command()
@click.argument("pipeline")
@click.option("-p", "assignments", multiple=True, metavar="NAME=VALUE", help="One parameter.")
@click.option("--params", default="", metavar="FILE", help="Parameters in a YAML file.")
@click.option("--output", default="", help="Folder of the runs; default: runs/<pipeline>.")
@click.option(
    "--as-of", default="", metavar="DATE", help="Replay history as of this date. Same as -p as_of."
)
@click.option("-v", "--verbose", is_flag=True, help="Show every line and every change.")
@click.option(
    "--runner",
    type=click.Choice(["process", "docker"]),
    default="process",
    show_default=True,
    help="Local runs: run tasks as processes, or in containers of their image.",
)
@click.option("--docker-arg", multiple=True, help="Another argument of `docker run`; repeatable.")
@click.option("--remote", is_flag=True, help="Run on Kubeflow, and follow the run to its end.")
@click.option("--no-wait", is_flag=True, help="Remote: start the run and return at once.")
@click.option("--experiment", default="", help="Remote: default: the pipeline's name.")
@click.option("--service-account", default="", help="Remote: Kubernetes service account.")
@click.option("--pipeline-root", default="", help="Remote: root of the artifacts.")
@compile_options
@with_connection
def run(
    pipeline: str,
    assignments: tuple[str, ...],
    params: str,
    output: str,
    as_of: str,
    verbose: bool,
    runner: str,
    docker_arg: tuple[str, ...],
    remote: bool,
    no_wait: bool,
    experiment: str,
    service_account: str,
    pipeline_root: str,
    resources: str,
    image: str,
    gpu_image: str,
    **connection: str,
) -> None:
    """Run PIPELINE: a name such as `distillation`, or a compiled YAML file.

    A file runs the code it contains, on this machine and as you: the source of its steps and, with
    --runner docker, the images it names. Run only files whose author you trust.

    On this machine, all runs of a pipeline share one folder of checkpoints, so that running again
    resumes what was interrupted, and one registry if the pipeline has one. With --remote the
    pipeline is uploaded, unless it is there already, and started with the same parameters on the
    cluster.
    """
    from kubestill.assets.packages import load_package

    package = load_package(pipeline, image=image, gpu_image=gpu_image, resources=resources)
    if as_of:
        assignments = (*assignments, f"as_of={as_of}")
    if not remote:
        docker = docker_arg if runner == "docker" else None
        _run_here(package, assignments, params, output, verbose, docker)
        return
    from kubestill.cli.remote import run_remote
    from kubestill.cli.size import warn_of_size
    from kubestill.client.pools import read_request
    from kubestill.local import read_parameters, with_defaults

    arguments = read_parameters(package.spec, assignments, params)
    read_request(with_defaults(package.spec, arguments))
    warn_of_size(package, arguments)
    run_remote(
        connect(connection),
        package,
        arguments,
        experiment=experiment,
        service_account=service_account,
        pipeline_root=pipeline_root,
        wait=not no_wait,
        verbose=verbose,
    )


def _run_here(
    package: Package,
    assignments: tuple[str, ...],
    params: str,
    output: str,
    verbose: bool,
    docker: tuple[str, ...] | None,
) -> None:
    if docker is None and find_spec("torch") is None:
        raise ModuleNotFoundError(name="torch")
    from kubestill.local import Containers, read_parameters, run_pipeline

    root = os.path.abspath(output or os.path.join("runs", package.name))
    places = {name: os.path.join(root, name) for name in ("checkpoints", "registry")}
    defaults: dict[str, Any] = {
        "checkpoint_uri": places["checkpoints"],
        "registry": places["registry"],
    }
    arguments = read_parameters(package.spec, assignments, params, defaults=defaults)
    containers = None if docker is None else Containers(arguments=docker)
    result = run_pipeline(
        package.spec, arguments, root=root, verbose=verbose, containers=containers
    )
    if result.failed or result.error:
        # A step that refused, such as a gate, has written down why.
        _show_reports(result)
        raise click.ClickException(_failure(result))
    _show_summary(result)
    _show_reports(result)
    if result.model:
        local = "://" not in result.model
        echo(f"model: {os.path.relpath(result.model) if local else result.model}")


def _failure(result: Run) -> str:
    if result.failed is None:
        return result.error
    log = os.path.relpath(result.failed.log)
    return f"{result.failed.name} failed: {result.failed.error}\n\nIts whole output: {log}"


def _show_summary(result: Run) -> None:
    """Print the summary of the last task that wrote one, without its long tables."""
    summaries = [task for task in result.tasks if _holds(task.folder, "summary")]
    if not summaries:
        return
    path = os.path.join(summaries[-1].folder, "summary")
    with open(path, encoding="utf-8") as file:
        blocks = file.read().strip().split("\n\n")
    for number, block in enumerate(blocks):
        heading, _, rows = block.partition("\n")
        count = len(rows.splitlines()) - 1  # the first of them is the rule below the heading
        if heading.startswith("|") and count > _LONGEST_TABLE:
            names = ", ".join(name.strip() for name in heading.strip("|").split("|"))
            blocks[number] = f"({count} rows of {names}: {os.path.relpath(path)})"
    echo("\n" + "\n\n".join(blocks) + "\n")


def _show_reports(result: Run) -> None:
    """Copy the reports to files that a browser opens as HTML, and print their paths."""
    folder = os.path.join(result.folder, "reports")
    paths: list[str] = []
    for task in result.tasks:
        if _holds(task.folder, "report"):
            os.makedirs(folder, exist_ok=True)
            paths.append(os.path.join(folder, f"{task.name}.html"))
            shutil.copyfile(os.path.join(task.folder, "report"), paths[-1])
    if len(paths) > 1:
        echo(f"all reports: {os.path.relpath(folder)}")
    if paths:
        echo(f"report: {os.path.relpath(paths[-1])}")


def _holds(folder: str, name: str) -> bool:
    return os.path.isfile(os.path.join(folder, name))

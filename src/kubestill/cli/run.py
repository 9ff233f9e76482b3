"""`kubestill run`: a pipeline on this machine."""

# Protobuf makes its classes at run time.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from typing import TYPE_CHECKING

import click

from kubestill.errors import Problems, nearest

if TYPE_CHECKING:
    from kfp.pipeline_spec import pipeline_spec_pb2

    from kubestill.local import Run


@click.command()
@click.argument("pipeline")
@click.option("-p", "assignments", multiple=True, metavar="NAME=VALUE", help="One parameter.")
@click.option("--params", default="", metavar="FILE", help="Parameters in a YAML file.")
@click.option("--output", default="", help="Folder of the runs; default: runs/<pipeline>.")
@click.option(
    "--as-of", default="", metavar="DATE", help="Replay: as if it were run then. Same as -p as_of."
)
@click.option("-v", "--verbose", is_flag=True, help="Show every line of the tasks.")
def run(
    pipeline: str,
    assignments: tuple[str, ...],
    params: str,
    output: str,
    as_of: str,
    verbose: bool,
) -> None:
    """Run PIPELINE on this machine: a name such as `distillation`, or a compiled YAML file.

    Checkpoints go to one folder for all runs, so that running again resumes what was interrupted;
    so does the registry of a pipeline that has one.
    """
    if find_spec("torch") is None:
        raise click.ClickException(
            "running needs the runtime too: pip install 'kubestill[client,runtime]'"
        )
    from kubestill.local import read_parameters, run_pipeline

    spec = _load(pipeline)
    root = os.path.abspath(output or os.path.join("runs", spec.pipeline_info.name))
    if as_of:
        assignments = (*assignments, f"as_of={as_of}")
    places = {name: os.path.join(root, name) for name in ("checkpoints", "registry")}
    defaults = {"checkpoint_uri": places["checkpoints"], "registry": places["registry"]}
    arguments = read_parameters(spec, assignments, params, defaults=defaults)
    result = run_pipeline(spec, arguments, root=root, verbose=verbose)
    if result.failed or result.error:
        raise click.ClickException(_failure(result))
    _show_results(result)


def _load(pipeline: str) -> pipeline_spec_pb2.PipelineSpec:
    if pipeline.endswith((".yaml", ".yml")) and os.path.exists(pipeline):
        from kfp.components import load_component_from_file

        return load_component_from_file(pipeline).pipeline_spec
    import kubestill.pipelines

    known = kubestill.pipelines.__all__
    name = pipeline.replace("-", "_")
    if name not in known:
        problems = Problems()
        shown = [entry.replace("_", "-") for entry in known]
        problems.add("PIPELINE", pipeline, f"no such pipeline or file; {nearest(pipeline, shown)}")
        problems.raise_if_any()
    return getattr(kubestill.pipelines, name).pipeline_spec


def _failure(result: Run) -> str:
    if result.failed is None:
        return result.error
    log = os.path.relpath(os.path.join(result.failed.folder, "task.log"))
    return f"{result.failed.name} failed: {result.failed.error}\n\nIts whole output: {log}"


def _show_results(result: Run) -> None:
    """Print the last task's summary, and copies of the reports that a browser knows as HTML."""
    summaries = [task for task in result.tasks if _holds(task.folder, "summary")]
    if summaries:
        with open(os.path.join(summaries[-1].folder, "summary"), encoding="utf-8") as file:
            click.echo("\n" + file.read().strip() + "\n")
    folder = os.path.join(result.folder, "reports")
    paths: list[str] = []
    for task in result.tasks:
        if _holds(task.folder, "report"):
            os.makedirs(folder, exist_ok=True)
            paths.append(os.path.join(folder, f"{task.name}.html"))
            shutil.copyfile(os.path.join(task.folder, "report"), paths[-1])
    if len(paths) > 1:
        click.echo(f"all reports: {os.path.relpath(folder)}")
    if paths:
        click.echo(f"report: {os.path.relpath(paths[-1])}")


def _holds(folder: str, name: str) -> bool:
    return os.path.isfile(os.path.join(folder, name))

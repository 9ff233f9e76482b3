"""`kubestill run`: a pipeline on this machine, or on the cluster."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from kubestill.cli.connection import compile_options, connect, with_connection
from kubestill.forkserver import ForkServer, serve_while
from kubestill.terminal import echo, print_summary

if TYPE_CHECKING:
    from kubestill.assets.packages import Package


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
    """Run a pipeline on this machine, or on Kubeflow.

    PIPELINE is a name such as `distillation`, or a compiled YAML file. A file runs the code it
    contains, on this machine and as you: the source of its steps and, with --runner docker, the
    images it names. Run only files whose author you trust.

    On this machine, all runs of a pipeline share one folder of checkpoints, so that running again
    resumes what was interrupted, and one registry if the pipeline has one. With --remote the
    pipeline is uploaded, unless it is there already, and started with the same parameters on the
    cluster.
    """
    here = not remote and runner == "process"
    # It imports what steps need while kfp is imported here, so it comes first.
    with serve_while(pipeline if here else "") as server:
        from kubestill.assets.packages import load_package

        package = load_package(pipeline, image=image, gpu_image=gpu_image, resources=resources)
        if as_of:
            assignments = (*assignments, f"as_of={as_of}")
        if not remote:
            docker = docker_arg if runner == "docker" else None
            _run_here(package, assignments, params, output, verbose, docker, server)
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
    server: ForkServer | None,
) -> None:
    if docker is None and find_spec("torch") is None:
        raise ModuleNotFoundError(name="torch")
    from kubestill.local import (
        Containers,
        default_places,
        explain_failure,
        find_output,
        read_parameters,
        run_pipeline,
        scores_of_models,
    )

    root = os.path.abspath(output or os.path.join("runs", package.name))
    defaults = default_places(package.spec, root)
    arguments = read_parameters(package.spec, assignments, params, defaults=defaults)
    containers = None if docker is None else Containers(arguments=docker)
    result = run_pipeline(
        package.spec,
        arguments,
        root=root,
        verbose=verbose,
        containers=containers,
        server=server,
    )
    failure = explain_failure(result)
    if not failure:
        if path := find_output(result, "summary"):
            with open(path, encoding="utf-8") as file:
                print_summary(file.read(), path)
    # A step that refused, such as a gate, has written down why.
    paths = [os.path.relpath(path) for path in result.reports.values()]
    if len(paths) > 1:
        echo(f"all reports: {os.path.dirname(paths[-1])}")
    if paths:
        echo(f"report: {paths[-1]}")
    if failure:
        raise click.ClickException(failure)
    _show_models(result.models, scores_of_models(result))


def _show_models(models: Mapping[str, str], scores: Mapping[str, Any] | None) -> None:
    """Print where the models lie, what each is worth, and how the first of them is used."""
    uris = {name: uri if "://" in uri else os.path.relpath(uri) for name, uri in models.items()}
    worth = {one["name"]: _worth(one) for one in (scores or {"models": {}})["models"].values()}
    for name, uri in reversed(uris.items()):
        echo(f"{name}: {uri}{worth.get(name, '')}")
    if not uris:
        return
    best, uri = next(iter(uris.items()))
    for file in ("model.onnx", "model.pt2"):
        if os.path.isfile(os.path.join(uri, file)):
            echo(f"{best} for other runtimes: {os.path.join(uri, file)}")
    echo(
        "in Python:\n"
        "    import kubestill\n"
        f'    {_variable(best)} = kubestill.load_model("{uri}")\n'
        f"    answers = {_variable(best)}(frame)  # a DataFrame with the columns it learned from"
    )


def _worth(scored: Mapping[str, Any]) -> str:
    """Return a model's size and its first score."""
    size = scored["cost"]["parameters"]
    told = [f"{size:,} parameters"] if size else []
    for metric, score in list(scored["metrics"].items())[:1]:
        if score["value"] is not None:
            told.append(f"{metric} {score['value']:.4g}")
    return "".join(f", {one}" for one in told)


def _variable(name: str) -> str:
    return name if name.isidentifier() else "model"

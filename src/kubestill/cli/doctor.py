"""`kubestill doctor`: is everything there that a run on the cluster needs?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kubestill.cli.connection import compile_options, connected
from kubestill.terminal import echo

if TYPE_CHECKING:
    from kubestill.assets.packages import Package
    from kubestill.client import Api

_MARKS = {True: "✓", False: "✗", None: "?"}
_ADVICE = "!"


@click.command()
@click.argument("pipeline", default="")
@click.option("-p", "assignments", multiple=True, metavar="NAME=VALUE", help="One parameter.")
@click.option("--params", default="", metavar="FILE", help="Parameters in a YAML file.")
@click.option("--store", default="", help="Another place to write to, such as gs://bucket/x.")
@compile_options
@connected
def doctor(
    api: Api,
    pipeline: str,
    assignments: tuple[str, ...],
    params: str,
    store: str,
    resources: str,
    image: str,
    gpu_image: str,
) -> None:
    """Check that a run on the cluster has what it needs.

    This looks at packages, host, Kubeflow's version, access and retries. With a pipeline and its
    parameters, given as for `run`, it also checks the checkpoint store, the registry, the images,
    whether any node can take the steps, and whether Kubeflow Trainer is there for steps with
    `nodes`; without one, what --store and --image name. "?" marks what cannot be checked from here,
    such as a store that only the cluster has credentials for, and "!" what works but could be
    better.
    """
    from kubestill.client.doctor import examine
    from kubestill.client.pools import read_request
    from kubestill.client.trainer import find_runtimes

    images, stores = {image, gpu_image}, {store}
    request, runtimes = None, set[str]()
    if pipeline:
        package, arguments = _arguments(pipeline, assignments, params, resources, image, gpu_image)
        stores |= {arguments.get("checkpoint_uri", ""), arguments.get("registry", "")}
        images = {arguments.get("image", ""), arguments.get("gpu_image", "")}
        request = read_request(arguments)
        runtimes = find_runtimes(package.documents, arguments)
    elif assignments or params:
        raise click.UsageError("-p and --params are parameters of a pipeline: name it")
    ok = True
    images, stores = (sorted(named - {""}) for named in (images, stores))
    for finding in examine(api, stores=stores, images=images, request=request, runtimes=runtimes):
        ok &= finding.ok is not False
        mark = _ADVICE if finding.advice else _MARKS[finding.ok]
        echo(f"{mark} {finding.name}: {finding.said}")
    if not ok:
        raise click.ClickException("not everything is in order")


def _arguments(
    pipeline: str,
    assignments: tuple[str, ...],
    params: str,
    resources: str,
    image: str,
    gpu_image: str,
) -> tuple[Package, dict[str, Any]]:
    from kubestill.assets.packages import load_package
    from kubestill.local import read_parameters, with_defaults

    package = load_package(pipeline, image=image, gpu_image=gpu_image, resources=resources)
    arguments = read_parameters(package.spec, assignments, params)
    return package, with_defaults(package.spec, arguments)

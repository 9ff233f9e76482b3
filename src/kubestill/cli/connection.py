"""The options that commands about pipelines and clusters share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from kubestill.terminal import echo

if TYPE_CHECKING:
    from kubestill.client import Api

_HELP = {
    "host": "Address of Kubeflow's API, such as https://kubeflow.example/pipeline.",
    "namespace": "Kubeflow's user namespace, where it has several users.",
    "token": "Bearer token; @FILE reads it from a file.",
    "cookie": "Session cookie as name=value (Dex); @FILE reads it from a file.",
    "header": "One header as 'Name: value' (identity-aware proxies); @FILE reads it from a file.",
    "ca_file": "Certificates to trust instead of the system's.",
}


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options, and hand the command an `api` built from them.

    Every option may stand in the environment as KUBESTILL_<NAME> or in a configuration file.
    """

    @functools.wraps(command)
    def run(**options: Any) -> None:
        given = {name: options.pop(name) for name in _HELP}
        command(api=connect(given), **options)

    return with_connection(run)


def with_connection(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options alone."""
    for name, text in reversed(_HELP.items()):
        command = click.option("--" + name.replace("_", "-"), default="", help=text)(command)
    return command


def connect(options: dict[str, str]) -> Api:
    """Build the API's client from the options among `options`."""
    from kubestill.client import Api, read_connection

    connection = read_connection({name: options[name] for name in _HELP})
    if connection.exposure:
        echo(f"WARNING: {connection.exposure}", err=True)
    return Api(connection)


def compile_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what is settled when a pipeline is compiled: --resources, --image and --gpu-image."""
    for option, text in (
        ("--gpu-image", "Image of the steps that have a device; default: that of --image."),
        ("--image", "Image of the steps, best by its digest; default: kubestill:<version>."),
        ("--resources", "Compile-time resources, a YAML file."),
    ):
        command = click.option(option, default="", help=text)(command)
    return command

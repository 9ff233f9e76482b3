"""`kubestill serve`: a model over HTTP."""

from __future__ import annotations

import click

from kubestill.terminal import echo


@click.command()
@click.argument("source")
@click.option("--name", default="model", show_default=True, help="Name of the model, in addresses.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=int, default=8080, show_default=True, help="0 takes a free port.")
@click.option(
    "--poll",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="Seconds between looks for a new model; 0 never looks.",
)
@click.option(
    "--batch-rows",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Most rows of several requests to compute together.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Threads of one computation.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 or auto.")
@click.option(
    "--strict", is_flag=True, help="Refuse rows with values that training refused or never saw."
)
@click.option(
    "--trust",
    multiple=True,
    metavar="PACKAGE",
    help="Package whose networks the model may name; repeatable.",
)
def serve(
    source: str,
    name: str,
    host: str,
    port: int,
    poll: float,
    batch_rows: int,
    threads: int,
    device: str,
    strict: bool,
    trust: tuple[str, ...],
) -> None:
    """Serve a model over HTTP, by the protocol of KServe (v2).

    SOURCE is a model's folder, such as the `student` of a run, or a registry of
    continuous-retraining: then its champion is served, and each that replaces it. Local, gs:// or
    s3://.
    """
    from kubestill.runtime.serving.app import ServingSettings
    from kubestill.runtime.serving.server import serve
    from kubestill.runtime.serving.source import ModelSource

    serve(
        ModelSource(source, trust=trust, device=device, strict=strict),
        ServingSettings(name=name, poll_seconds=poll, most_rows=batch_rows),
        host=host,
        port=port,
        threads=threads,
        told=echo,
    )

"""`kubestill run --remote`: start a pipeline on the cluster and follow it to its end."""

from __future__ import annotations

import time
from typing import Any

import click

from kubestill.assets.packages import Package
from kubestill.client import Api, ensure_version, failures, follow_run, start_run

_MARKS = {"RUNNING": "▸", "SUCCEEDED": "✓", "SKIPPED": "·", "FAILED": "✗", "CANCELED": "✗"}


def run_remote(
    api: Api,
    package: Package,
    arguments: dict[str, Any],
    *,
    experiment: str,
    service_account: str,
    pipeline_root: str,
    wait: bool,
) -> None:
    """Upload what is not there yet, start it, and show its tasks until it ends.

    Raises:
        ClickException: The run did not succeed.
    """
    version = ensure_version(api, package)
    run_id = start_run(
        api,
        version,
        arguments,
        name=f"{package.name} {time.strftime('%Y-%m-%d %H:%M')}",
        experiment=experiment or package.name,
        service_account=service_account,
        pipeline_root=pipeline_root,
    )
    click.echo(f"{version.name}: run {run_id}\n{api.connection.host}/#/runs/details/{run_id}")
    if not wait:
        return
    start = time.monotonic()

    def show(task: str, state: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - start), 60)
        label = "" if state in ("RUNNING", "SUCCEEDED") else f" {state.lower()}"
        click.echo(f"{minutes:3}:{seconds:02}  {_MARKS.get(state, ' ')} {task}{label}")

    try:
        run = follow_run(api, run_id, show)
    except KeyboardInterrupt:
        raise click.ClickException(f"no longer watching; run {run_id} goes on") from None
    if run["state"] not in ("SUCCEEDED", "SKIPPED"):
        raise click.ClickException("\n".join(failures(run)))
    click.echo(f"run {run_id} succeeded")

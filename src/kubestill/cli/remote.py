"""`kubestill run --remote`: start a pipeline on the cluster and follow it to its end."""

from __future__ import annotations

import time
from typing import Any

from kubestill.assets.packages import Package
from kubestill.cli.nodes import refuse_without_trainer
from kubestill.cli.watch import watch
from kubestill.client import Api, check_server, ensure_version, start_run
from kubestill.terminal import clean, echo


def run_remote(
    api: Api,
    package: Package,
    arguments: dict[str, Any],
    *,
    experiment: str,
    service_account: str,
    pipeline_root: str,
    wait: bool,
    verbose: bool,
) -> None:
    """Upload what is not there yet, start it, and show its steps until it ends.

    Raises:
        ClickException: The run did not succeed.
    """
    if warning := check_server(api):
        echo(f"warning: {clean(warning)}", err=True)
    refuse_without_trainer(package, arguments)
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
    echo(
        f"{clean(version.name)}: run {clean(run_id)}\n"
        f"{api.connection.host}/#/runs/details/{clean(run_id)}"
    )
    if wait:
        watch(api, run_id, package.documents["pipeline_spec"], verbose=verbose)

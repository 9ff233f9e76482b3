"""`kubestill runs`: all runs on the cluster, or on this machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from kubestill.cli.connection import connect, connected, with_connection
from kubestill.cli.local_runs import explain_local, find_page, list_local, remove_local, show_local
from kubestill.terminal import clean, echo, print_table, show_duration

if TYPE_CHECKING:
    from kubestill.client import Api

_MOST = 20


@click.group()
def runs() -> None:
    """Inspect, follow and stop runs on the cluster or here.

    Runs are the cluster's; with --local, those of this machine.
    """


def local_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --local, and where the runs of this machine lie."""
    for option in (
        click.option("--output", default="runs", show_default=True, help="Folder of local runs."),
        click.option("--local", is_flag=True, help="The runs of this machine, not the cluster's."),
    ):
        command = option(command)
    return command


@runs.command("ls")
@click.option("-n", "most", default=_MOST, show_default=True, help="Number of runs, newest first.")
@local_options
@with_connection
def list_all(most: int, local: bool, output: str, **connection: str) -> None:
    """List runs, newest first."""
    if local:
        list_local(output, most)
        return
    from kubestill.client import list_runs
    from kubestill.client.progress import read_time

    table = [["run", "name", "state", "created", "took"]]
    for run in list_runs(connect(connection), max(0, most)):
        created, ended = read_time(run.get("created_at")), read_time(run.get("finished_at"))
        table.append(
            [
                str(run["run_id"]),
                str(run.get("display_name") or ""),
                describe_state(run),
                f"{created:%Y-%m-%d %H:%M}" if created else "",
                show_duration((ended - created).total_seconds()) if created and ended else "",
            ]
        )
    print_table(table)


@runs.command()
@click.argument("run_id", metavar="RUN")
@local_options
@with_connection
def show(run_id: str, local: bool, output: str, **connection: str) -> None:
    """Show the state of each step of RUN, and why it failed if it did."""
    if local:
        show_local(output, run_id)
        return
    api = connect(connection)
    from kubestill.cli.watch import describe_failure, open_files
    from kubestill.client import get_run
    from kubestill.client.nodes import NodeNames
    from kubestill.client.progress import read_progress, was_canceled
    from kubestill.client.steps import fetch_spec, read_steps

    run = get_run(api, run_id)
    spec = fetch_spec(api, run)
    progress = read_progress(run, read_steps(spec), NodeNames())
    echo(f"{clean(run.get('display_name') or run_id)}: {describe_state(run)}")
    echo(f"{api.connection.host}/#/runs/details/{clean(run_id)}\n")
    table = [["step", "state", "done", "attempts", "took"]]
    for one in progress.steps:
        over = one.state in ("succeeded", "failed", "canceled")
        shown = one.state
        if progress.stands_still and not over and shown != "skipped":
            shown = "unknown"
        elif progress.state in ("SUCCEEDED", "FAILED", "CANCELED") and shown == "waiting":
            shown = "not run"
        table.append(
            [
                one.step.name,
                shown,
                f"{one.done}/{one.total}" if one.step.loops else "",
                str(one.attempts) if one.attempts > 1 else "",
                show_duration(one.seconds) if over else "",
            ]
        )
    print_table(table)
    if progress.stands_still:
        echo("\nKubeflow's list of tasks stood still on the way; the run's own state is right")
    if run.get("state") == "FAILED" and not was_canceled(run):
        files, folder = open_files(api, run, spec)
        echo("\n" + describe_failure(api, run, files, progress, folder))


@runs.command()
@click.argument("run_id", metavar="RUN")
@local_options
@with_connection
def why(run_id: str, local: bool, output: str, **connection: str) -> None:
    """Say why RUN failed, and nothing else.

    Exits with 3 if it did not fail.
    """
    if local:
        cause = explain_local(output, run_id)
    else:
        cause = _explain_remote(connect(connection), run_id)
    echo(cause or "it did not fail")
    if not cause:
        raise SystemExit(3)


def _explain_remote(api: Api, run_id: str) -> str:
    from kubestill.cli.watch import describe_failure, open_files
    from kubestill.client import get_run
    from kubestill.client.nodes import NodeNames
    from kubestill.client.progress import read_progress, was_canceled
    from kubestill.client.steps import fetch_spec, read_steps

    run = get_run(api, run_id)
    if run.get("state") != "FAILED" or was_canceled(run):
        return ""
    spec = fetch_spec(api, run)
    progress = read_progress(run, read_steps(spec), NodeNames())
    files, folder = open_files(api, run, spec)
    return describe_failure(api, run, files, progress, folder)


@runs.command("open")
@click.argument("run_id", metavar="RUN")
@local_options
@with_connection
def open_page(run_id: str, local: bool, output: str, **connection: str) -> None:
    """Show the page of RUN in a browser."""
    import webbrowser

    if local:
        page = find_page(output, run_id)
    else:
        from kubestill.client import get_run

        api = connect(connection)
        run = get_run(api, run_id)
        page = f"{api.connection.host}/#/runs/details/{clean(run['run_id'])}"
    echo(page)
    webbrowser.open(page)


@runs.command()
@click.argument("run_id", metavar="RUN")
@click.option("-v", "--verbose", is_flag=True, help="Show every change on a line of its own.")
@connected
def follow(api: Api, run_id: str, verbose: bool) -> None:
    """Show the steps of RUN until it ends, then its results."""
    from kubestill.cli.watch import watch

    watch(api, run_id, verbose=verbose)


@runs.command("rm")
@click.argument("run_ids", metavar="RUN...", nargs=-1, required=True)
@click.option("--output", default="runs", show_default=True, help="Folder of local runs.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def remove(run_ids: tuple[str, ...], output: str, yes: bool) -> None:
    """Delete the folders of local runs.

    Checkpoints and registry beside them stay.
    """
    remove_local(output, run_ids, yes=yes)


@runs.command()
@click.argument("run_id", metavar="RUN")
@connected
def stop(api: Api, run_id: str) -> None:
    """Stop RUN, and return the rows it has claimed to its registry.

    Kubeflow may skip the exit handler of a stopped run, which would return them.
    """
    from kubestill.client import stop_run

    run, stopped = stop_run(api, run_id)
    if stopped:
        echo(f"run {clean(run_id)} is stopped")
    else:
        echo(f"run {clean(run_id)} was over already: {describe_state(run)}")
    registry = _registry_of(api, run)
    if registry and run.get("state") != "SUCCEEDED":
        echo(_free(registry, str(run["run_id"])))


def _free(registry: str, run_id: str) -> str:
    """Return the rows that a run has claimed, and say so."""
    from kubestill.errors import InvalidInput, KubestillError

    try:
        from kubestill.runtime.retraining.inspection import free_claim

        outcome = free_claim(registry, run_id)
    except (KubestillError, ImportError) as error:
        problems = error.problems if isinstance(error, InvalidInput) else ()
        why = str(problems[0] if problems else error).partition("\n")[0]
        return (
            f"its registry {clean(registry)} cannot be written from here ({clean(why)}); the "
            "next run takes over once Kubeflow tells it that this one is over, else after its lease"
        )
    if outcome is None:
        return f"it had taken nothing from its registry {clean(registry)}"
    held = f"of its registry {clean(registry)} it holds nothing any more"
    return f"{held}: {outcome.outcome}. {clean(outcome.reason)}"


def _registry_of(api: Api, run: dict[str, Any]) -> str:
    """Return the registry that a run works with; empty if it has none."""
    from kubestill.client.steps import fetch_spec

    given = (run.get("runtime_config") or {}).get("parameters") or {}
    if "registry" in given:
        return str(given["registry"] or "")
    inputs = (fetch_spec(api, run).get("root") or {}).get("inputDefinitions") or {}
    default = ((inputs.get("parameters") or {}).get("registry") or {}).get("defaultValue")
    return str(default or "")


def describe_state(run: dict[str, Any]) -> str:
    """Return the state of a run in one word."""
    from kubestill.client.progress import was_canceled

    if was_canceled(run):
        return "stopped" if run.get("state") in ("FAILED", "CANCELED") else "stopping"
    return clean(str(run.get("state") or "unknown").lower())

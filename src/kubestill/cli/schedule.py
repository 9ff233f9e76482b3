"""`kubestill schedule`: recurring runs."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click

from kubestill.cli.connection import compile_options, connected
from kubestill.cli.runs import describe_state
from kubestill.terminal import clean, echo, print_table

if TYPE_CHECKING:
    from kubestill.client import Api


@click.group()
def schedule() -> None:
    """Run pipelines on a schedule, one run at a time.

    Missed runs are not caught up on.
    """


@schedule.command("set")
@click.argument("pipeline")
@click.option("--name", default="", help="Name of the schedule; default: the pipeline's.")
@click.option("--cron", default="", help="Five fields, such as '0 6 * * 1-5'.")
@click.option("--every", default="", help="Interval instead of a cron, such as 90m, 6h or 1d.")
@click.option("--time-zone", default="UTC", show_default=True, help="Time zone of the cron.")
@click.option(
    "--cluster-time-zone",
    default="UTC",
    show_default=True,
    help="Time zone in which Kubeflow reads crons (its CRON_SCHEDULE_TIMEZONE).",
)
@click.option("-p", "assignments", multiple=True, metavar="NAME=VALUE", help="One parameter.")
@click.option("--params", default="", metavar="FILE", help="Parameters in a YAML file.")
@click.option("--latest", is_flag=True, help="Run the latest version; default: this one.")
@click.option("--paused", is_flag=True, help="Create it paused.")
@click.option("--wait", is_flag=True, help="Wait for runs of the schedule it replaces.")
@click.option("--experiment", default="", help="Name of the runs; default: that of the schedule.")
@click.option("--service-account", default="", help="Kubernetes service account that the runs use.")
@click.option("--pipeline-root", default="", help="Root of the artifacts; default: Kubeflow's own.")
@compile_options
@connected
def set_schedule(
    api: Api,
    pipeline: str,
    name: str,
    cron: str,
    every: str,
    time_zone: str,
    cluster_time_zone: str,
    assignments: tuple[str, ...],
    params: str,
    latest: bool,
    paused: bool,
    wait: bool,
    experiment: str,
    service_account: str,
    pipeline_root: str,
    resources: str,
    image: str,
    gpu_image: str,
) -> None:
    """Create or replace the schedule of PIPELINE.

    The options describe it completely: whatever differs is replaced. A run that the schedule has
    already started continues.
    """
    from kubestill.assets.packages import load_package
    from kubestill.cli.nodes import refuse_without_trainer
    from kubestill.cli.size import warn_of_size
    from kubestill.client import (
        Schedule,
        check_arguments,
        check_server,
        ensure_version,
        put_schedule,
        read_trigger,
    )
    from kubestill.client.pools import read_request
    from kubestill.errors import Problems
    from kubestill.local import read_parameters, with_defaults

    package = load_package(pipeline, image=image, gpu_image=gpu_image, resources=resources)
    problems = Problems()
    trigger, arguments = None, {}
    with problems.collect():
        trigger = read_trigger(
            cron, every, time_zone=time_zone, cluster_time_zone=cluster_time_zone
        )
    with problems.collect():
        arguments = read_parameters(package.spec, assignments, params)
    with problems.collect():
        check_arguments(arguments)
    with problems.collect():
        read_request(with_defaults(package.spec, arguments))
    problems.raise_if_any()
    assert trigger is not None
    warn_of_size(package, arguments)
    refuse_without_trainer(package, arguments)
    if warning := check_server(api):
        echo(f"warning: {clean(warning)}", err=True)
    version = ensure_version(api, package)
    name = name or package.name
    change = put_schedule(
        api,
        Schedule(
            name=name,
            pipeline_id=version.pipeline_id,
            version_id="" if latest else version.version_id,
            arguments=arguments,
            trigger=trigger,
            experiment=experiment or name,
            service_account=service_account,
            pipeline_root=pipeline_root,
            paused=paused,
        ),
        wait=wait,
        say=echo,
    )
    echo(f"{name}: {'set' if change.changed else 'as it was'}, {clean(version.name)}")
    if change.replaced > 1:
        echo(f"in place of {change.replaced} schedules of that name")
    if trigger.next_at and not paused:
        echo(f"next run: {trigger.next_at:%a %Y-%m-%d %H:%M %Z}")
    if trigger.shift_at:
        echo(
            f"clocks change by {trigger.shift_at:%Y-%m-%d}: Kubeflow's schedules do not follow; "
            "set it again then"
        )
    _say_kept(change.kept)


@schedule.command()
@click.argument("name")
@connected
def pause(api: Api, name: str) -> None:
    """Pause schedule NAME; a run that it has started continues."""
    from kubestill.client import set_paused

    count = set_paused(api, name, True)
    echo(f"{name}: paused" + (f", all {count} of that name" if count > 1 else ""))


@schedule.command()
@click.argument("name")
@connected
def resume(api: Api, name: str) -> None:
    """Resume schedule NAME; missed runs are not caught up on."""
    from kubestill.client import set_paused

    count = set_paused(api, name, False)
    echo(f"{name}: resumed" + (f", the newest of {count}" if count > 1 else ""))


@schedule.command("ls")
@connected
def list_all(api: Api) -> None:
    """List all schedules, newest first."""
    from kubestill.client import list_schedules
    from kubestill.client.schedules import last_runs, name_versions
    from kubestill.client.triggers import describe_trigger

    found = list_schedules(api)
    versions = name_versions(api, found)
    runs = last_runs(api) if found else {}
    table = [["name", "when", "version", "state", "last run", "created"]]
    for one in found:
        reference = one.get("pipeline_version_reference") or {}
        key = reference.get("pipeline_version_id") or reference.get("pipeline_id")
        last = runs.get(one["recurring_run_id"])
        table.append(
            [
                one["display_name"],
                describe_trigger(one.get("trigger") or {}, str(one.get("description") or "")),
                versions.get(key or "", ""),
                one.get("status", one.get("mode", "")).lower(),
                f"{describe_state(last)} {_minute(last.get('created_at'))}" if last else "",
                _minute(one.get("created_at")),
            ]
        )
    print_table(table)
    counts = Counter(one["display_name"] for one in found)
    for name, count in counts.items():
        if count > 1:
            echo(
                f"{count} schedules are called {clean(name)}: `pause` and `rm` take all of them, "
                "`resume` the newest, and `set` leaves one"
            )


def _minute(time: object) -> str:
    from kubestill.client.progress import read_time

    moment = read_time(time)
    return f"{moment:%Y-%m-%d %H:%M}" if moment else ""


@schedule.command("rm")
@click.argument("name")
@click.option("--wait", is_flag=True, help="Wait for a run that is still active.")
@connected
def remove(api: Api, name: str, wait: bool) -> None:
    """Remove schedule NAME as soon as none of its runs is active.

    Until then it is disabled.
    """
    from kubestill.client import remove_schedule

    kept = remove_schedule(api, name, wait=wait, say=echo)
    echo(f"{name}: {'stopped' if kept else 'removed'}")
    _say_kept(kept)


def _say_kept(kept: tuple[str, ...]) -> None:
    if kept:
        echo(
            f"still going: {clean(', '.join(kept))}. Kubeflow would kill it with its schedule, so "
            "that stays, disabled; `set` or `rm` again removes it"
        )

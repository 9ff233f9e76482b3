"""What `kubestill runs` says of the runs of this machine, by the records in their folders."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kubestill.errors import KubestillError, counted
from kubestill.terminal import clean, echo, print_table, show_duration

if TYPE_CHECKING:
    from kubestill.local import RunRecord

_ID = 8
"""Signs of an id that are shown; the run's folder ends with them."""


def list_local(output: str, most: int) -> None:
    """Print the runs below a folder, newest first."""
    from kubestill.local import list_records

    records = list_records(output)
    if not records:
        echo(f"no run below {clean(output)}; --output names another folder")
        return
    table = [["run", "pipeline", "state", "started", "took", "folder"]]
    for one in records[: max(0, most)]:
        table.append(
            [
                one.id[:_ID],
                one.pipeline,
                one.shown_state,
                _local_time(one.started),
                "" if one.seconds is None else show_duration(one.seconds),
                os.path.relpath(one.folder),
            ]
        )
    print_table(table)


def show_local(output: str, run: str) -> None:
    """Print how a run went, what it made, and why it failed if it did."""
    from kubestill.local import find_record

    one = find_record(output, run)
    echo(f"{one.pipeline} {one.id}: {one.shown_state}")
    took = "" if one.seconds is None else f", took {show_duration(one.seconds)}"
    echo(f"started {_local_time(one.started)}{took}, in {os.path.relpath(one.folder)}\n")
    table = [["step", "state", "took"]]
    for step in one.steps:
        state = "succeeded" if step.ok else "failed"
        table.append([step.name, state, show_duration(step.seconds)])
    if one.steps:
        print_table(table)
    elif one.shown_state == "interrupted":
        echo("its process was killed; the folders of its steps hold what each had printed")
    for name, path in one.reports.items():
        echo(f"report of {name}: {_place(one.folder, path)}")
    for name, path in one.models.items():
        echo(f"{name}: {_place(one.folder, path)}")
    for name, value in sorted(one.arguments.items()):
        echo(f"-p {name}={value}")
    if one.cause:
        echo(f"\n{_explain(one)}")


def explain_local(output: str, run: str) -> str:
    """Return why a run failed; empty if it did not."""
    from kubestill.local import find_record

    one = find_record(output, run)
    if not one.cause and one.shown_state == "interrupted":
        return "its process was killed; the folders of its steps hold what each had printed"
    return _explain(one) if one.cause else ""


def _explain(run: RunRecord) -> str:
    logs = [os.path.relpath(os.path.join(run.folder, one.log)) for one in run.steps if not one.ok]
    return "\n\n".join([run.cause, *(f"Its whole output: {log}" for log in logs)])


def find_page(output: str, run: str) -> str:
    """Return the address of the page that shows a run.

    Raises:
        KubestillError: There is no such run, or it is not over.
    """
    from kubestill.local import find_record

    one = find_record(output, run)
    page = Path(one.folder, "index.html")
    if not page.is_file():
        raise KubestillError(f"{one.id[:_ID]} is {one.shown_state}: it has no page")
    return page.absolute().as_uri()


def remove_local(output: str, runs: Iterable[str], *, yes: bool) -> None:
    """Delete the folders of runs, all or none.

    Raises:
        KubestillError: A run is not there, goes on, or a registry needs what lies in its folder.
    """
    from kubestill.local import find_record
    from kubestill.local.cleaning import explain_need

    records = {one.folder: one for one in (find_record(output, run) for run in runs)}
    refused = [f"{one.id[:_ID]} {why}" for one in records.values() if (why := explain_need(one))]
    if refused:
        raise KubestillError("nothing is deleted: " + "; ".join(refused))
    for folder in records:
        echo(os.path.relpath(folder))
    if not yes:
        click.confirm(f"Delete {counted(len(records), 'run')}?", abort=True)
    for folder in records:
        shutil.rmtree(folder)


def _place(folder: str, path: str) -> str:
    if "://" in path:
        return path
    shown = os.path.relpath(os.path.join(folder, path))
    return shown if os.path.exists(shown) else f"{shown} (no longer there)"


def _local_time(text: str) -> str:
    return f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M}"

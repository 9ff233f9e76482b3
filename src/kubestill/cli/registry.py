"""`kubestill registry`: who is champion, which rows were taken, and how to overrule a run."""

from __future__ import annotations

import json
from typing import Any

import click

from kubestill.errors import counted
from kubestill.terminal import echo, print_table


@click.group()
def registry() -> None:
    """Inspect a registry, and override decisions of its runs.

    URI is the folder of a registry of continuous-retraining; local, gs:// or s3://.
    """


@registry.command("ls")
@click.argument("uri")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_runs(uri: str, as_json: bool) -> None:
    """List every run and how it ended, oldest first."""
    from kubestill.runtime.retraining.inspection import runs

    found = runs(uri)
    if as_json:
        echo(json.dumps([run.model_dump(mode="json") for run in found], indent=2))
        return
    table = [["run", "began", "rows before", "rows", "outcome", "champion", "why"]]
    table += [
        [
            run.run_id,
            run.at[:16],
            run.end[:16],
            f"{run.rows:,}",
            run.outcome,
            str(run.version or ""),
            _cut(run.reason),
        ]
        for run in found
    ]
    print_table(table)


@registry.command()
@click.argument("uri")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(uri: str, as_json: bool) -> None:
    """Show champions, the active run, and what became of the rows."""
    from kubestill.runtime.retraining.inspection import standing

    found = standing(uri).model_dump(mode="json", by_alias=True)
    if as_json:
        echo(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        if not isinstance(value, list):
            echo(f"{name:<16} {value}")
    _show("champions", found["champions"])
    _show("windows", found["windows"])


@registry.command()
@click.argument("uri")
def check(uri: str) -> None:
    """Exit with 3 if the last run needs a person.

    It does if it failed or is stuck. A run is stuck when it is the third in a row to be rejected
    for one reason; the message says what to change.
    """
    from kubestill.runtime.retraining.inspection import check

    told, alarming = check(uri)
    echo(told)
    if alarming:
        raise SystemExit(3)


@registry.command()
@click.argument("uri")
def verify(uri: str) -> None:
    """Read every champion's files and compare digests.

    Exits with 1 if anything is damaged or gone.
    """
    from kubestill.runtime.retraining.inspection import verify

    count, damage = verify(uri)
    if damage:
        raise click.ClickException("damaged:\n" + "\n".join(f"  {line}" for line in damage))
    echo(f"{counted(count, 'champion')}, all as they were promoted")


@registry.command()
@click.argument("uri")
@click.option("--to", default=0, metavar="VERSION", help="Default: the previous champion.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def rollback(uri: str, to: int, yes: bool) -> None:
    """Make an earlier champion the champion again.

    Rows that only the rolled-back champions learned from are quarantined: no run learns from them
    again. An active run will not promote: its challenger was judged against another champion.
    """
    from kubestill.runtime.retraining import open_registry
    from kubestill.runtime.retraining.inspection import roll_back
    from kubestill.runtime.steps.tracking import mirror_champion

    def confirm(now: str, then: str) -> None:
        if not yes:
            click.confirm(f"The champion is {now}. Roll back to {then}?", abort=True)

    echo(roll_back(uri, to=to, confirm=confirm))
    if told := mirror_champion(open_registry(uri)):
        echo(told)


@registry.command()
@click.argument("uri")
@click.argument("windows", nargs=-1, required=True, metavar="WINDOW...")
def release(uri: str, windows: tuple[str, ...]) -> None:
    """Let later runs learn from quarantined windows after all.

    WINDOW is a name that `kubestill registry show` lists. The rows have been used to judge, and
    never judge again.
    """
    from kubestill.runtime.retraining.inspection import release

    echo(release(uri, windows))


@registry.command()
@click.argument("uri")
@click.argument("windows", nargs=-1, required=True, metavar="WINDOW...")
def quarantine(uri: str, windows: tuple[str, ...]) -> None:
    """Keep later runs from learning from bad windows.

    WINDOW is a name that `kubestill registry show` lists. A rollback undoes what a champion has
    already learned from it.
    """
    from kubestill.runtime.retraining.inspection import quarantine

    echo(quarantine(uri, windows))


@registry.command()
@click.argument("uri")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def unlock(uri: str, yes: bool) -> None:
    """Take the claim from a dead run, and give its rows back.

    This is for runs of another machine, or of a Kubeflow that does not answer: the next run would
    wait for the end of their lease. If the run is alive after all, it is refused from then on.
    """
    from kubestill.runtime.retraining.inspection import unlock

    def confirm(held: str) -> None:
        echo(held)
        if not yes:
            click.confirm("Has this run ended? It can write nothing more then.", abort=True)

    echo(unlock(uri, confirm=confirm))


def _show(title: str, rows: list[dict[str, Any]]) -> None:
    if rows:
        echo(f"\n{title}")
        print_table([list(rows[0]), *([str(value) for value in row.values()] for row in rows)])


def _cut(text: str) -> str:
    first = text.partition(". ")[0]
    return first if len(first) <= 80 else first[:77] + "..."

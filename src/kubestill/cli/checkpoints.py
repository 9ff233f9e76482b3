"""`kubestill checkpoints`: look at the checkpoints of training runs."""

from __future__ import annotations

import json

import click

from kubestill.errors import counted
from kubestill.terminal import echo, print_table


@click.group()
def checkpoints() -> None:
    """List, explain and verify checkpoints.

    URI is a checkpoint_uri, a training run's folder below it, or a ledger file; local, gs:// or
    s3://.
    """


@checkpoints.command("ls")
@click.argument("uri")
@click.option("--json", "as_json", is_flag=True, help="Print JSON with every field.")
def list_checkpoints(uri: str, as_json: bool) -> None:
    """List every checkpoint, oldest first."""
    from kubestill.runtime.checkpoints.inspection import describe

    found = describe(uri)
    if as_json:
        echo(json.dumps([vars(one) for one in found], indent=2))
        return
    table = [["training", "step", "epoch", "kind", "phase", "MB", "metrics", "state"]]
    for one in found:
        # Shorten the fingerprint as far as it stays unique, as git does with commits.
        experiment, _, fingerprint = one.training.rpartition("/")
        table.append(
            [
                f"{experiment}/{fingerprint[:10]}",
                f"{one.step:,}",
                f"{one.epoch:.2f}",
                one.kind,
                str(one.phase or ""),
                f"{one.bytes / 1e6:.1f}",
                " ".join(f"{name}={value:.4g}" for name, value in one.metrics.items()),
                one.state,
            ]
        )
    print_table(table)


@checkpoints.command()
@click.argument("uri")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(uri: str, as_json: bool) -> None:
    """Show whether each training run is finished, failed or open.

    Also since when, and what its attempts were.
    """
    from kubestill.runtime.checkpoints.inspection import show as describe_training_runs

    found = [vars(training) for training in describe_training_runs(uri)]
    if as_json:
        echo(json.dumps(found, indent=2))
        return
    for training in found:
        for name, value in training.items():
            for line in value if isinstance(value, tuple) else [value]:
                echo(f"{name:<12} {line}")
        echo()


@checkpoints.command()
@click.argument("uri")
def verify(uri: str) -> None:
    """Read everything, and compare sizes and digests.

    Exits with 1 if anything is damaged.
    """
    from kubestill.runtime.checkpoints.inspection import describe
    from kubestill.runtime.checkpoints.inspection import verify as find_damage

    damage = find_damage(uri)
    if damage:
        raise click.ClickException("damaged:\n" + "\n".join(f"  {line}" for line in damage))
    echo(f"{counted(len(describe(uri)), 'checkpoint')}, all as their ledger says")

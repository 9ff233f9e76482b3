"""The command group, and how errors meet the user."""

from __future__ import annotations

from typing import Any

import click

from kubestill import __version__
from kubestill.cli.checkpoints import checkpoints
from kubestill.cli.clean import clean_up
from kubestill.cli.compile import compile_assets
from kubestill.cli.doctor import doctor
from kubestill.cli.extras import explain_missing
from kubestill.cli.registry import registry
from kubestill.cli.run import run
from kubestill.cli.runs import runs
from kubestill.cli.schedule import schedule
from kubestill.cli.serve import serve
from kubestill.cli.upload import upload
from kubestill.errors import KubestillError
from kubestill.terminal import clean


class _Group(click.Group):
    """Shows our own errors as a message instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KubestillError as error:
            raise click.ClickException(clean(error, lines=True)) from error
        except click.ClickException as error:
            shown = clean(error.message, lines=True)
            error.message = shown  # pyright: ignore[reportAttributeAccessIssue]
            raise
        except ModuleNotFoundError as error:
            remedy = explain_missing(error.name or "")
            if not remedy:
                raise
            raise click.ClickException(remedy) from error


@click.group(cls=_Group)
@click.version_option(__version__, prog_name="kubestill")
def main() -> None:
    """Distil large models into small ones on Kubeflow, and keep them fresh."""


main.add_command(run)
main.add_command(runs)
main.add_command(compile_assets)
main.add_command(checkpoints)
main.add_command(registry)
main.add_command(upload)
main.add_command(schedule)
main.add_command(serve)
main.add_command(doctor)
main.add_command(clean_up)

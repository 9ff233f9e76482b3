"""Follow a run on the cluster as if it were a local one, and report its results."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from types import FrameType
from typing import Any

import click

from kubestill.client import Api, follow_run
from kubestill.client.files import RunFiles
from kubestill.client.nodes import NodeNames
from kubestill.client.progress import Progress, Status, read_progress, read_time, was_canceled
from kubestill.client.results import explain_failure, fetch_results, places_of
from kubestill.client.steps import Step, fetch_spec, read_steps
from kubestill.errors import ClusterError, KubestillError, counted
from kubestill.terminal import Steps, clean, draw_bar, echo, interrupt, print_summary, show_duration

PENDING_S = 30.0
"""Seconds that a pod may take to start before that is worth a line."""
_ASK_AGAIN_S = 60.0
"""Between two questions to Kubernetes."""
_SILENT_S = 180.0
"""Seconds that a driver, which needs only a few, may work while the list does not change."""
_MARKS = {"running": "▸", "succeeded": "✓", "failed": "✗", "canceled": "✗"}
_STANDS_STILL = (
    "Kubeflow's list of tasks stands still, as it does once the state of a run's nodes is over 1 MB"
)


class Watcher:
    """Shows what changes in a run, step by step."""

    def __init__(self, api: Api, run_id: str, steps: Sequence[Step], *, verbose: bool = False):
        """Remember which run to show; `verbose` gives each change a line of its own."""
        self.progress: Progress | None = None
        self._api = api
        self._run_id = run_id
        self._steps = steps
        self._verbose = verbose
        self._shown: Steps | None = None
        self._names = NodeNames()
        self._told: dict[str, tuple[str, int, int, int]] = {}
        self._reasons: dict[str, str] = {}
        self._pending: dict[str, float] = {}
        self._asked = float("-inf")
        self._changed = time.monotonic()
        self._said_away = self._said_still = False

    def close(self) -> None:
        """Leave nothing behind that would be written over."""
        if self._shown:
            self._shown.close()

    def show(self, run: dict[str, Any]) -> None:
        """Show what is new in Kubeflow's answer."""
        if self._shown is None:
            age_s = _age(read_time(run.get("created_at")))
            self._shown = Steps(sys.stdout, verbose=self._verbose, age_s=age_s).__enter__()
        self._said_away = False
        progress = self.progress = read_progress(run, self._steps, self._names)
        for one in progress.steps:
            self._show_step(self._shown, one)
        self._explain_waiting(progress)
        self._shown.footer(self._describe(progress))

    def away(self, seconds: float) -> None:
        """Show that the server has not answered for some seconds."""
        said = f"no answer from {self._api.connection.host} for {show_duration(seconds)}"
        if self._shown:
            self._shown.footer(f"{said}; the run goes on")
        if seconds >= PENDING_S and not self._said_away:
            self._said_away = True
            self._say(f"  {said}; still asking, and the run goes on")

    def _show_step(self, shown: Steps, one: Status) -> None:
        now = (one.state, one.done if one.step.loops else 0, one.total, one.attempts)
        before = self._told.get(one.step.path)
        self._told[one.step.path] = now
        if before == now or one.state in ("waiting", "skipped", "pending"):
            return
        self._changed = time.monotonic()
        self._pending.pop(one.step.path, None)
        name = one.step.name
        if one.state == "running":
            shown.begin(name, age_s=_age(one.started))
            if one.step.loops:
                shown.advance(name, one.done, one.total)
            if one.attempts > (before[3] if before else 1):
                shown.say(f"▸ {name}, attempt {one.attempts}")
            return
        attempts = f", {one.attempts} attempts" if one.attempts > 1 else ""
        count = f" {one.done}/{one.total}" if one.step.loops and one.total > 1 else ""
        mark, took = _MARKS[one.state], show_duration(one.seconds)
        shown.end(name, f"{mark} {name}{count}{attempts}  {took}")

    def _explain_waiting(self, progress: Progress) -> None:
        """Show why pods do not start, and that the list of tasks seems to stand still."""
        now = time.monotonic()
        waiting = {one.step.path: one.step.name for one in progress.steps if one.state == "pending"}
        self._pending = {key: self._pending.get(key, now) for key in waiting}
        long = any(now - since >= PENDING_S for since in self._pending.values())
        silent = (
            progress.planning_since is not None
            and _age(progress.planning_since) >= _SILENT_S
            and now - self._changed >= _SILENT_S
        )
        if not (long or silent) or now - self._asked < _ASK_AGAIN_S:
            return
        self._asked = now
        # Half a second to import, for those who wait.
        from kubestill.client.events import find_waiting

        found = find_waiting(self._run_id, self._api.connection.namespace)
        names = {one.step.key: one.step.name for one in progress.steps}
        for one in found or ():
            self._say_pending(
                names.get(one.key, one.key), one.reason or "Kubernetes says no reason"
            )
        if found:
            return
        for name in waiting.values() if long else ():
            where = (
                "Kubernetes knows of no pod of it yet"
                if found is not None
                else "Kubernetes knows why, and no kube config here may ask it; "
                "`kubestill doctor PIPELINE -p …` looks at the nodes"
            )
            self._say_pending(name, where)
        if silent and not long and not self._said_still:
            self._said_still = True
            self._say(f"  {_STANDS_STILL}; the run continues, and its end will be reported")

    def _say_pending(self, name: str, reason: str) -> None:
        if self._reasons.get(name) != reason:
            self._reasons[name] = reason
            self._say(f"◌ {name} is pending: {reason}")

    def _describe(self, progress: Progress) -> str:
        over, total = progress.counted
        pending = [f"{one.step.name} pending" for one in progress.steps if one.state == "pending"]
        rest = " · ".join(pending) or progress.state.lower() or "pending"
        return f"{draw_bar(over, total)} steps  {rest}"

    def _say(self, line: str) -> None:
        if self._shown:
            self._shown.say(line)


def watch(
    api: Api, run_id: str, spec: dict[str, Any] | None = None, *, verbose: bool = False
) -> None:
    """Show a run until it ends, and then its results.

    Args:
        api: The server.
        run_id: Which run.
        spec: Its compiled pipeline; None asks the server.
        verbose: Show each change on a line of its own, and write nothing over.

    Raises:
        ClickException: The run did not succeed.
        ClusterError: It cannot be followed any longer.
        SystemExit: Somebody stopped the watching.
    """
    watcher: Watcher | None = None
    try:
        with _interruptible():
            if spec is None:
                from kubestill.client import get_run

                spec = fetch_spec(api, get_run(api, run_id))
            watcher = Watcher(api, run_id, read_steps(spec), verbose=verbose)
            run = follow_run(api, run_id, watcher.show, away=watcher.away)
    except _Interrupted as stopped:
        if watcher:
            watcher.close()
        echo(f"no longer following: {how_to_go_on(run_id)}", err=True)
        raise SystemExit(128 + stopped.number) from None
    except ClusterError as error:
        if error.status == 404:
            raise
        raise ClusterError(f"{error}\n{how_to_go_on(run_id)}", error.status) from error
    finally:
        if watcher:
            watcher.close()
    assert watcher is not None
    assert watcher.progress is not None
    finish(api, run, spec, watcher.progress)


def how_to_go_on(run_id: str) -> str:
    """Return how to go on following a run, and how to stop it."""
    return (
        f"run {clean(run_id)} goes on\n"
        f"  follow it:  kubestill runs follow {clean(run_id)}\n"
        f"  stop it:    kubestill runs stop {clean(run_id)}"
    )


def finish(api: Api, run: dict[str, Any], spec: dict[str, Any], progress: Progress) -> None:
    """Show the results of a run that is over, as after a local run.

    Raises:
        ClickException: It did not succeed; says why.
    """
    run_id, state = clean(run["run_id"]), str(run.get("state") or "")
    files, folder = open_files(api, run, spec)
    if progress.stands_still:
        over, total = progress.counted
        echo(
            f"{_STANDS_STILL}: it shows {over} of {counted(total, 'step')} as over, although the "
            "run has ended"
        )
    if was_canceled(run):
        raise click.ClickException(f"run {run_id} was stopped by hand")
    if state == "SKIPPED":
        raise click.ClickException(f"run {run_id} was skipped: none of its steps ran")
    if state != "SUCCEEDED":
        raise click.ClickException(describe_failure(api, run, files, progress, folder))
    _show_results(files, progress, folder)
    start, end = read_time(run.get("created_at")), read_time(run.get("finished_at"))
    took = ""
    if start and end and end > start:
        took = f" in {show_duration((end - start).total_seconds())}"
    echo(f"run {run_id} succeeded{took}")


def open_files(api: Api, run: dict[str, Any], spec: dict[str, Any]) -> tuple[RunFiles, str]:
    """Find where a run's files lie, and the folder here that copies of them go to."""
    from kubestill.client.events import find_pipeline_root

    pipeline = str((spec.get("pipelineInfo") or {}).get("name") or "") or _name_pipeline(api, run)
    root = ""
    if not (run.get("runtime_config") or {}).get("pipeline_root"):
        root = find_pipeline_root(api.connection.namespace)
    folder = os.path.join("runs", pipeline, str(run["run_id"]).replace(os.sep, "_"))
    return RunFiles(api, run, pipeline, default_root=root), folder


def _name_pipeline(api: Api, run: dict[str, Any]) -> str:
    """Return the name of a run's pipeline whose version is not on the server any more."""
    reference = run.get("pipeline_version_reference") or {}
    try:
        found = api.get(f"pipelines/{reference['pipeline_id']}")
    except (ClusterError, KeyError):
        return "unknown"
    return str(found.get("name") or found.get("display_name") or "unknown")


def describe_failure(
    api: Api, run: dict[str, Any], files: RunFiles, progress: Progress, folder: str
) -> str:
    """Report which steps failed and why, each in its own words, and where their logs are."""
    causes = explain_failure(api, run, files, progress, folder)
    parts = [
        f"{clean(cause.name)} failed"
        + (f": {clean(cause.message, lines=True)}" if cause.message else "; it left no message")
        + f"\n\nIts whole output: {clean(cause.log)}"
        for cause in causes
    ]
    said = str((run.get("error") or {}).get("message") or "")
    ended = f"run {clean(run['run_id'])} ended as {clean(run.get('state'))}"
    said = f": {said}" if said else f"; none of its steps left a message. Its files: {files.root}/"
    return "\n\n".join(parts) or clean(ended + said)


def _show_results(files: RunFiles, progress: Progress, folder: str) -> None:
    try:
        results = fetch_results(files, progress, folder)
    except (KubestillError, OSError) as error:
        # The run has gone well, whatever keeps us from reading it.
        echo("\nIts outputs cannot be read from here: " + clean(error))
        echo("\n".join(clean(line) for line in places_of(files, progress)))
        return
    if results.summary:
        print_summary(results.summary, results.summary_file)
    if len(results.reports) > 1:
        echo(f"all reports: {os.path.dirname(results.reports[-1])}")
    if results.reports:
        echo(f"report: {results.reports[-1]}")
    if results.model:
        echo(f"model of {results.model_step}: {results.model} ({clean(results.model_uri)})")
    elif results.model_uri:
        echo(f"model of {results.model_step}: {clean(results.model_uri)}")
    if not (results.summary or results.reports or results.model_uri):
        echo("\n".join(clean(line) for line in places_of(files, progress)))


def _age(moment: datetime | None) -> float:
    """Seconds since a moment of the server's clock, which may be ahead of ours."""
    return max(0.0, (datetime.now(UTC) - moment).total_seconds()) if moment else 0.0


class _Interrupted(BaseException):
    """Someone asked this process to end."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


@contextmanager
def _interruptible() -> Generator[None]:
    """Raise `_Interrupted` at Ctrl-C and SIGTERM; not again while it is dealt with."""

    def stop(number: int, frame: FrameType | None) -> None:
        for one in before:
            signal.signal(one, signal.SIG_IGN)
        interrupt(_Interrupted(number))

    before = dict.fromkeys((signal.SIGINT, signal.SIGTERM), signal.SIG_DFL)
    try:
        for one in before:
            before[one] = signal.signal(one, stop)  # pyright: ignore[reportArgumentType]
    except ValueError:  # not the main thread: signals are somebody else's
        yield
        return
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)

"""Kubeflow's subprocess runner with its output in order.

The DAG, its loops and conditions are run by `kfp.local`; only the function that starts one task's
process is ours, because kfp's prints every line of every task under one indentation, with the whole
input of each executor, and says nothing about why a task failed.
"""

# Protobuf makes its classes at run time.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import builtins
import contextlib
import copy
import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kfp import local
from kfp.local import pipeline_orchestrator, subprocess_task_handler
from kfp.pipeline_spec import pipeline_spec_pb2

from kubestill.local.console import Console
from kubestill.local.containers import Containers
from kubestill.local.output import ProgressFilter, last_error


@dataclass(kw_only=True)
class TaskRun:
    """One task of a local run."""

    name: str
    """As the pipeline shows it, with the iteration of its loop."""
    folder: str
    """Where its outputs lie."""
    ok: bool
    error: str = ""
    """The last exception it printed, where it failed."""


@dataclass(kw_only=True)
class Run:
    """One local run of a pipeline, in the order in which its tasks ended."""

    folder: str = ""
    tasks: list[TaskRun] = field(default_factory=list[TaskRun])
    error: str = ""
    """Why the run failed, where no task of it did."""

    @property
    def failed(self) -> TaskRun | None:
        """The task that made the run fail."""
        return next((task for task in self.tasks if not task.ok), None)


def run_pipeline(
    spec: pipeline_spec_pb2.PipelineSpec,
    arguments: dict[str, Any],
    *,
    root: str,
    verbose: bool = False,
    containers: Containers | None = None,
) -> Run:
    """Run a pipeline to its end or to its first failure.

    Args:
        spec: What to run. A task is retried, as often as its policy says and at once, where its
            process was killed, as a preempted pod is. One that failed by itself is not: a person is
            watching, and the next run resumes.
        arguments: Its parameters, checked.
        root: Folder that gets one sub-folder a run.
        verbose: Show every line of the tasks and of kfp itself.
        containers: How to run each task in its image; None runs it in this Python.
    """
    if containers:
        containers.check()
        os.makedirs(root, exist_ok=True)
    tasks = _TaskStarter(spec, Console(sys.stdout), root, verbose, containers)
    spec = _with_readable_conditions(_without_retries(spec))
    shown = sys.stdout if verbose else io.StringIO()
    with _kfp_tamed() as complaints, contextlib.redirect_stdout(shown):
        local.init(
            local.SubprocessRunner(use_venv=False),
            pipeline_root=root,
            workspace_root=os.path.join(root, ".workspace"),
            raise_on_error=True,
        )
        subprocess_task_handler.run_local_subprocess = tasks.run
        try:
            pipeline_orchestrator.run_local_pipeline(spec, arguments)
        except Exception as error:
            # A failed task has said so itself; anything else is between kfp and this machine.
            if tasks.result.failed is None:
                tasks.result.error = "\n".join([*complaints, f"{type(error).__name__}: {error}"])
    return tasks.result


class _TaskStarter:
    """Stands in for `kfp.local`'s function that runs one task in a process."""

    def __init__(
        self,
        spec: pipeline_spec_pb2.PipelineSpec,
        console: Console,
        root: str,
        verbose: bool,
        containers: Containers | None,
    ):
        self.result = Run()
        self._infos = _tasks(spec)
        self._images = _images(spec)
        self._containers = containers
        self._exits = {name for name, task in self._infos.items() if _is_exit(task)}
        self._console = console
        self._root = os.path.abspath(root)
        self._verbose = verbose

    def run(self, full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        """Run one task; after a failure only an exit handler's is started. Return its exit code."""
        folder = _task_folder(full_command)
        if self.result.failed and folder.rpartition(os.sep)[2] not in self._exits:
            return 1
        name, retries = self._describe(folder)
        self._console.started(name)
        start = time.monotonic()
        code, lines, why = self._attempt(name, folder, full_command, env_vars or {})
        while (killer := _killed_by(code)) and retries:
            reason = why or f"killed by signal {killer}"
            self._console.progress(name, f"{reason}; starting it again")
            retries -= 1
            code, lines, why = self._attempt(name, folder, full_command, env_vars or {})
        self._console.finished(name, time.monotonic() - start, ok=code == 0)
        error = ""
        if killer := _killed_by(code):
            guess = " (out of memory?)" * (killer == signal.SIGKILL)
            error = why or f"killed by signal {killer}{guess}"
        elif code:
            error = last_error(lines) or why or f"the process ended with code {code}"
        self.result.tasks.append(TaskRun(name=name, folder=folder, ok=code == 0, error=error))
        return code

    def _attempt(
        self, name: str, folder: str, command: list[str], env_vars: dict[str, str]
    ) -> tuple[int, list[str], str]:
        """Start a task once: its exit code, what it printed, and why it was killed if known."""
        env_vars = _threads(folder) | env_vars
        if self._containers is None:
            return *self._stream(name, folder, command, {**os.environ, **_driven(), **env_vars}), ""
        image = self._images[os.path.basename(folder)]
        container, command = self._containers.wrap(command, image, self._root, env_vars)
        code, lines = self._stream(name, folder, command, dict(os.environ))
        code, why = self._containers.verdict(container, code)
        return code, lines, why

    def _stream(
        self, name: str, folder: str, command: list[str], environment: dict[str, str]
    ) -> tuple[int, list[str]]:
        os.makedirs(folder, exist_ok=True)
        lines: list[str] = []
        progress = ProgressFilter()
        with (
            open(os.path.join(folder, "task.log"), "a", encoding="utf-8") as log,
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                bufsize=1,
                env=environment,
            ) as process,
        ):
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                lines.append(line.rstrip("\n"))
                if progress.shows(lines[-1]) or self._verbose:
                    self._console.progress(name, lines[-1])
        return process.returncode, lines

    def _describe(self, folder: str) -> tuple[str, int]:
        """The name to show for the task that writes to `folder`, and how often to retry it."""
        parts = os.path.relpath(folder, self._root).split(os.sep)
        self.result.folder = self.result.folder or os.path.join(self._root, parts[0])
        task = self._infos[parts[-1]]
        loops = [part.rpartition("-iteration-")[2] for part in parts if "-iteration-" in part]
        name = task.task_info.name + (f"[{','.join(loops)}]" if loops else "")
        return name, task.retry_policy.max_retry_count


def _killed_by(code: int) -> int:
    """The signal that ended a process or the child of its shell; 0 where none did."""
    return -code if code < 0 else max(0, code - 128)


def _threads(folder: str) -> dict[str, str]:
    """Share the cores between the two iterations of a loop that kfp runs at a time."""
    if "-iteration-" not in folder:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2))}


def _driven() -> dict[str, str]:
    # By the process that drives it, a run that comes later sees whether this one still lives.
    return {"PYTHONUNBUFFERED": "1", "KUBESTILL_DRIVER": str(os.getpid())}


def _task_folder(full_command: list[str]) -> str:
    executor_input = json.loads(full_command[full_command.index("--executor_input") + 1])
    return os.path.dirname(executor_input["outputs"]["outputFile"])


def _is_exit(task: pipeline_spec_pb2.PipelineTaskSpec) -> bool:
    """Whether a task ends an `ExitHandler`: only those are told how the tasks before went."""
    return any(given.HasField("task_final_status") for given in task.inputs.parameters.values())


def _dags(spec: pipeline_spec_pb2.PipelineSpec) -> Iterator[pipeline_spec_pb2.DagSpec]:
    for component in [spec.root, *spec.components.values()]:
        if component.WhichOneof("implementation") == "dag":
            yield component.dag


def _tasks(
    spec: pipeline_spec_pb2.PipelineSpec,
) -> dict[str, pipeline_spec_pb2.PipelineTaskSpec]:
    """Every task, by the name of its folder."""
    return {
        task.component_ref.name.removeprefix("comp-"): task
        for dag in _dags(spec)
        for task in dag.tasks.values()
    }


def _images(spec: pipeline_spec_pb2.PipelineSpec) -> dict[str, str]:
    """The image of every task, by the name of its folder."""
    executors = spec.deployment_spec["executors"]
    return {
        name.removeprefix("comp-"): executors[component.executor_label]["container"]["image"]
        for name, component in spec.components.items()
        if component.executor_label
    }


def _without_retries(spec: pipeline_spec_pb2.PipelineSpec) -> pipeline_spec_pb2.PipelineSpec:
    spec = copy.deepcopy(spec)
    for dag in _dags(spec):
        for task in dag.tasks.values():
            task.ClearField("retry_policy")
    return spec


def _with_readable_conditions(
    spec: pipeline_spec_pb2.PipelineSpec,
) -> pipeline_spec_pb2.PipelineSpec:
    """Name tasks and outputs in conditions as `kfp.local` reads them.

    It knows an output only if that is called `Output`, or by the name that stands here; any other
    condition would count as false.
    """
    for dag in _dags(spec):
        for task in dag.tasks.values():
            for name, given in task.inputs.parameters.items():
                if given.HasField("task_output_parameter"):
                    source = given.task_output_parameter
                    channel = f"{source.producer_task}--{source.output_parameter_key}"
                    task.trigger_policy.condition = task.trigger_policy.condition.replace(
                        f"['{name}']", f"['pipelinechannel--{channel}']"
                    )
    return spec


@contextlib.contextmanager
def _kfp_tamed() -> Iterator[list[str]]:
    """Put back what kfp changes for the whole process, and may leave changed under ParallelFor.

    Yields the errors that it logs: it swallows the exceptions behind them.
    """
    complaints: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            complaints.append(record.getMessage())
        return True

    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    written, started = builtins.print, subprocess_task_handler.run_local_subprocess
    # Not a handler: kfp clears those.
    root.addFilter(keep)
    try:
        with warnings.catch_warnings():
            # That our image is no stock Python image, and that display names have no effect here.
            warnings.filterwarnings("ignore", module=r"kfp\.local\..*")
            yield complaints
    finally:
        root.removeFilter(keep)
        subprocess_task_handler.run_local_subprocess = started
        builtins.print = written
        root.handlers[:] = handlers
        root.setLevel(level)

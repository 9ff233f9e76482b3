"""Run one task as Kubeflow's driver, launcher and pod do together, in a process or a container."""

# Protobuf makes its classes at run time.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kfp.local import placeholder_utils, status
from kfp.pipeline_spec import pipeline_spec_pb2

from kubestill.errors import KubestillError
from kubestill.local.backend import LOGS, Backend, build_input, read_outputs
from kubestill.local.containers import Containers, End
from kubestill.local.folders import (
    choose_folder,
    find_changed,
    find_unwritten,
    set_aside,
    stamp_inputs,
)
from kubestill.local.processes import Processes
from kubestill.steplog import ProgressFilter, last_error
from kubestill.terminal import Steps

_EXECUTOR = "kfp.dsl.executor_main"
_RETRIES = 2
"""How often Argo restarts a pod that vanished, unless the task says otherwise, by the manifests of
Kubeflow Pipelines 2.17. A process that fails or is killed in its pod is not started again
(`OnError`), whatever the task sets."""


@dataclass(kw_only=True)
class TaskRun:
    """One task of a local run."""

    name: str
    """As the pipeline shows it, with the iteration of its loop."""
    folder: str
    """Where its outputs lie; of a task that failed, where they were moved to."""
    log: str
    """File of all that it printed."""
    ok: bool
    seconds: float = 0.0
    error: str = ""
    """Why it failed, in its own words if it left any."""


@dataclass(kw_only=True)
class LocalRun:
    """One local run of a pipeline, in the order in which its tasks ended."""

    folder: str = ""
    tasks: list[TaskRun] = field(default_factory=list[TaskRun])
    models: dict[str, str] = field(default_factory=dict[str, str])
    """The models that the last step judged, compared, certified or made, by their names once the
    run is over; the first is the one that it was about. Paths, or URIs of models elsewhere."""
    judged: str = ""
    """Folder of the step that these models are of."""
    reports: dict[str, str] = field(default_factory=dict[str, str])
    """Paths of pages that a browser opens, by the task that wrote them, once the run is over."""
    error: str = ""
    """Why the run failed, where no task of it did."""

    @property
    def failed(self) -> TaskRun | None:
        """The task that made the run fail."""
        return next((task for task in self.tasks if not task.ok), None)


@dataclass(frozen=True, kw_only=True)
class _Task:
    """One task, ready to run."""

    shown: str
    """Its name as people see it."""
    part: str
    """Which iteration of its loops it is, as `[3]`; empty outside of loops."""
    loops: tuple[str, ...]
    """Its loops' own names, the outermost first."""
    plain: str
    """Its key in the pipeline, by which its folder is called."""
    executor_input: dict[str, Any]
    command: list[str]
    image: str
    environment: dict[str, str]
    retries: int

    @property
    def name(self) -> str:
        return self.shown + self.part

    @property
    def folder(self) -> str:
        return os.path.dirname(self.executor_input["outputs"]["outputFile"])

    @property
    def log(self) -> str:
        return self.executor_input["outputs"]["artifacts"][LOGS]["artifacts"][0]["uri"]


class Tasks:
    """Replaces the function of `kfp.local` that runs one task."""

    def __init__(
        self,
        spec: pipeline_spec_pb2.PipelineSpec,
        backend: Backend,
        processes: Processes,
        console: Steps,
        *,
        root: str,
        verbose: bool = False,
        containers: Containers | None = None,
        environment: Mapping[str, str] | None = None,
        begun: Callable[[str], None] = lambda _: None,
    ):
        self.result = LocalRun()
        self.run_id = str(uuid.uuid4())
        self._specs = _tasks(spec)
        self._backend = backend
        self._processes = processes
        self._console = console
        self._root = root
        self._verbose = verbose
        self._containers = containers
        self._environment = dict(environment or {})
        self._begun = begun
        self._started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._installing = threading.Lock()
        self._iterations: dict[str, int] = {}
        self._in_loop: dict[str, set[str]] = {}

    def begin_run(self, pipeline: str) -> str:
        """Begin the run; returns the name of its folder."""
        name = self.name_run(pipeline)
        self.result.folder = os.path.join(self._root, name)
        self._begun(self.result.folder)
        return name

    def name_run(self, pipeline: str) -> str:
        """Return the name of the run's folder, which ends as the run's id begins."""
        return f"{pipeline}-{datetime.now():%Y-%m-%d-%H-%M-%S}-{self.run_id[:8]}"

    def begin_loop(self, loop: str, iterations: int) -> None:
        """Remember how many iterations a loop has; an inner one begins once for each outer one."""
        self._iterations[loop] = self._iterations.get(loop, 0) + iterations

    def end_loop(self, loop: str) -> None:
        """Show that the steps of a loop are over."""
        for name in sorted(self._in_loop.pop(loop, ())):
            self._console.collapse(name)

    def run(
        self,
        *,
        pipeline_resource_name: str,
        component_name: str,
        component_spec: pipeline_spec_pb2.ComponentSpec,
        executor_spec: pipeline_spec_pb2.PipelineDeploymentConfig.ExecutorSpec,
        arguments: Mapping[str, Any],
        **_: Any,
    ) -> tuple[dict[str, Any], status.Status]:
        """Run one task; after a failure only an exit handler's is started.

        Returns:
            Its outputs, and how it ended.
        """
        plain, spec = self._specs[component_name]
        if self.result.failed and not _handled(spec):
            return {}, status.Status.FAILURE
        task = self._prepare(
            pipeline_resource_name, plain, spec, component_spec, executor_spec, arguments
        )
        total = self._iterations.get(task.loops[-1], 0) if task.loops else 0
        if task.loops:
            self._in_loop.setdefault(task.loops[0], set()).add(task.shown)
        self._console.begin(task.shown, task.part, total=total)
        start = time.monotonic()
        inputs = stamp_inputs(task.executor_input)
        attempt, outputs = 1, dict[str, Any]()
        end, lines = self._attempt(task)
        while end.from_outside and attempt <= task.retries:
            self._console.say(f"    {task.name}: {_reason(end)}; starting it again")
            set_aside(task.executor_input, attempt)
            attempt += 1
            end, lines = self._attempt(task)
        error = self._explain(task, end, lines)
        if not error:
            try:
                outputs = read_outputs(task.executor_input, component_spec)
                outputs = {name: self._backend.record(name, one) for name, one in outputs.items()}
            except KubestillError as trouble:
                error = str(trouble)
        error = error or "; ".join(find_changed(inputs, stamp_inputs(task.executor_input)))
        folder = set_aside(task.executor_input, attempt) if error else task.folder
        took = time.monotonic() - start
        self._console.finish(task.shown, task.part, ok=not error, seconds=took)
        self.result.tasks.append(
            TaskRun(
                name=task.name,
                folder=folder,
                log=task.log,
                ok=not error,
                seconds=round(took, 3),
                error=error,
            )
        )
        if error:
            return {}, status.Status.FAILURE
        if models := _models(task.executor_input, outputs):
            self.result.models, self.result.judged = models, folder
        with open(task.log, "a", encoding="utf-8") as log:
            for name in find_unwritten(task.executor_input):
                log.write(f"WARNING: nothing was written for the output {name!r}\n")
        return outputs, status.Status.SUCCESS

    def _prepare(
        self,
        resource: str,
        plain: str,
        spec: pipeline_spec_pb2.PipelineTaskSpec,
        component: pipeline_spec_pb2.ComponentSpec,
        executor: pipeline_spec_pb2.PipelineDeploymentConfig.ExecutorSpec,
        arguments: Mapping[str, Any],
    ) -> _Task:
        """Do the driver's work: resolve inputs, name the folder, fill in the command."""
        parts = resource.split("/")
        run = os.path.join(self._root, parts[0])
        loops = [part.rpartition("-iteration-") for part in parts if "-iteration-" in part]
        numbers = ",".join(number for _, _, number in loops)
        folder = choose_folder(run, plain)
        os.makedirs(folder, exist_ok=True)
        producer = _handled(spec)
        told = self._backend.final_status(producer, parts[0]) if producer else None
        executor_input = build_input(component, arguments, folder, told)
        values: dict[str, Any] = executor_input["inputs"].get("parameterValues", {})
        for key, value in values.items():
            if isinstance(value, str):
                values[key] = self._fill_in(value)
        places = {
            "pipeline_resource_name": parts[0],
            "task_resource_name": plain,
            "pipeline_root": self._root,
        }
        executor_input = placeholder_utils.resolve_self_references_in_executor_input(
            executor_input, **places, pipeline_job_id=self.run_id, pipeline_task_id=folder[-36:]
        )
        container = executor.container
        image, *command = placeholder_utils.replace_placeholders(
            [
                self._fill_in(part)
                for part in (container.image, *container.command, *container.args)
            ],
            executor_input,
            **places,
            unique_pipeline_id=self.run_id,
        )
        environment = {"PYTHONUNBUFFERED": "1", "KUBESTILL_RUN_ROOT": run, **self._environment}
        if loops:
            # kfp runs two iterations of a loop at a time.
            environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // 2))
        environment |= {variable.name: variable.value for variable in container.env}
        return _Task(
            shown=spec.task_info.name,
            part=f"[{numbers}]" if loops else "",
            loops=tuple(loop for loop, _, _ in loops),
            plain=plain,
            executor_input=executor_input,
            command=command,
            image=image,
            environment=environment,
            retries=spec.retry_policy.max_retry_count or _RETRIES,
        )

    def _fill_in(self, text: str) -> str:
        """Put in what `kfp.local` leaves as it is."""
        for name in ("pipeline_job_create_time_utc", "pipeline_job_schedule_time_utc"):
            text = text.replace(f"{{{{$.{name}}}}}", self._started)
        return text

    def _attempt(self, task: _Task) -> tuple[End, list[str]]:
        """Start a task once; returns how it ended and what it printed."""
        if self._containers is None:
            if not any(_EXECUTOR in part for part in task.command):
                why = "its command is no Python function's; run it with --runner docker"
                return End(code=1, why=why), []
            # The same Python comes first. By the process that drives a step, a run that comes later
            # sees whether this one still lives.
            folders = [os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)]
            here = {"PATH": os.pathsep.join(folders), "KUBESTILL_DRIVER": str(os.getpid())}
            with self._alone(task):
                code, lines = self._stream(
                    task, task.command, {**os.environ, **here, **task.environment}
                )
            return End(code=128 - code if code < 0 else code), lines
        name, command = self._containers.wrap(
            task.command, task.image, self._root, task.environment
        )
        undo = self._containers.removal(name)
        code, lines = self._stream(task, command, dict(os.environ), undo)
        return self._containers.read_end(name, code), lines

    def _alone(self, task: _Task) -> Any:
        """Return a lock that lets only one task at a time install packages here."""
        installs = any("pip install" in part for part in task.command)
        return self._installing if installs else threading.Lock()

    def _stream(
        self,
        task: _Task,
        command: list[str],
        environment: dict[str, str],
        undo: list[str] | None = None,
    ) -> tuple[int, list[str]]:
        lines: list[str] = []
        progress = ProgressFilter()
        with (
            open(task.log, "a", encoding="utf-8") as log,
            self._processes.start(command, environment, undo=undo or ()) as process,
        ):
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                lines.append(line.rstrip("\n"))
                if progress.shows(lines[-1]) or self._verbose:
                    self._console.tell(task.shown, lines[-1], task.part)
        return process.returncode, lines

    def _explain(self, task: _Task, end: End, lines: list[str]) -> str:
        """Return why a task failed; empty where it did not."""
        if not end.code:
            return ""
        from kubestill.runtime.steps.failures import read_failures

        # What the step itself left for others says most; strangers' steps leave nothing.
        failures = [one for one in read_failures(self.result.folder) if one.task == task.plain]
        left = failures[-1].describe().removeprefix(f"{task.plain}: ") if failures else ""
        if end.code > 128 and not end.why and not left:
            return _reason(end)
        refused = next((line for line in lines if line.startswith("docker: ")), "")
        said = left or last_error(lines) or end.why or refused
        return said or f"the process ended with code {end.code}"


def _models(executor_input: Mapping[str, Any], outputs: Mapping[str, Any]) -> dict[str, str]:
    """Return where the models lie that a task was about; empty where it was about none."""
    found: dict[str, str] = {}
    for ports in (executor_input["inputs"], executor_input["outputs"]):
        for port, listed in ports.get("artifacts", {}).items():
            uris = [artifact["uri"] for artifact in listed["artifacts"]]
            if uris and (
                (port == "model" and os.path.exists(uris[0]))
                or os.path.isfile(os.path.join(uris[0], "model.json"))
            ):
                found[port] = uris[0]
    if uri := outputs.get("model_uri"):
        found["model"] = str(uri)
    return found if "model" in found else {}


def _reason(end: End) -> str:
    """Return what ended a process by force."""
    number = end.code - 128
    return end.why or f"killed by signal {number}{' (out of memory?)' * (number == 9)}"


def _handled(task: pipeline_spec_pb2.PipelineTaskSpec) -> str:
    """Return the task that an exit handler's is around; empty where this is none.

    Only those learn how the tasks before them ended.
    """
    given = task.inputs.parameters.values()
    told = (one for one in given if one.HasField("task_final_status"))
    return next((one.task_final_status.producer_task for one in told), "")


def _tasks(
    spec: pipeline_spec_pb2.PipelineSpec,
) -> dict[str, tuple[str, pipeline_spec_pb2.PipelineTaskSpec]]:
    """Return every task and its key by the name of its component, which is its own."""
    return {
        task.component_ref.name: (key, task)
        for component in [spec.root, *spec.components.values()]
        for key, task in component.dag.tasks.items()
    }

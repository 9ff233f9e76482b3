"""Run a pipeline through Kubeflow's own local orchestrator, between whose tasks the backend stands.

`kfp.local` runs the DAG, its loops and conditions. Two of its parts are ours for the time of a run:
what it keeps outputs in (`backend.Handover`), and what runs one task (`tasks.Tasks`).
"""

# Protobuf makes its classes at run time.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import kfp
from kfp import local
from kfp.local import executor_input_utils, pipeline_orchestrator, status, task_dispatcher
from kfp.local import io as kfp_io
from kfp.local.orchestrator.enhanced_dag_orchestrator import ParallelExecutor
from kfp.pipeline_spec import pipeline_spec_pb2

from kubestill.errors import KubestillError, Problems
from kubestill.forkserver import ForkServer
from kubestill.local.backend import Backend, Handover, as_sent
from kubestill.local.cleaning import KEEP_ROWS, drop_made_rows
from kubestill.local.containers import Containers
from kubestill.local.processes import Processes, ending_on_signals
from kubestill.local.records import RunRecord, StepRecord, alive, now, plain
from kubestill.local.results import collect_reports, name_cause, name_models
from kubestill.local.tasks import LocalRun, Tasks
from kubestill.terminal import Lines, Steps


def run_pipeline(
    spec: pipeline_spec_pb2.PipelineSpec,
    arguments: dict[str, Any],
    *,
    root: str,
    verbose: bool = False,
    containers: Containers | None = None,
    server: ForkServer | None = None,
) -> LocalRun:
    """Run a pipeline to its end or to its first failure, as the cluster does.

    Args:
        spec: What to run. A task whose container is ended from outside is restarted, as often as
            its policy says; one that fails, or whose process is killed, is not.
        arguments: Its parameters, checked.
        root: Folder that gets one sub-folder a run.
        verbose: Show every line of the tasks and of kfp itself.
        containers: How to run each task in its image; None runs it in this Python.
        server: Forks tasks that it has the imports of.

    Raises:
        InvalidInput: The arguments are more than Kubeflow's API takes.
        KubestillError: kfp is too old, or no Docker engine answers.
        KeyboardInterrupt: Somebody ended the run by Ctrl-C or SIGTERM; its steps are over.
    """
    # What a run stands on, such as exit handlers, came with this part of kfp's local orchestrator.
    if not hasattr(kfp_io.IOStore, "put_task_status"):
        raise KubestillError(
            f"kfp {kfp.__version__}: running here takes 2.17.0 or later; pip install -U kfp"
        )
    _check_size(arguments)
    if containers:
        containers.check()
        os.makedirs(root, exist_ok=True)
    root = os.path.abspath(root)
    backend = Backend(spec)
    spec = _prepared(spec)
    record = RunRecord(
        id="", pipeline=spec.pipeline_info.name, started=now(), arguments=plain(arguments)
    )
    with (
        contextlib.ExitStack() as lifetime,
        Processes(server) as processes,
        ending_on_signals(processes),
        Steps(sys.stdout, verbose=verbose) as steps,
    ):

        def begin(folder: str) -> None:
            nonlocal record
            os.makedirs(folder, exist_ok=True)
            lifetime.enter_context(alive(folder))
            record = replace(record, id=tasks.run_id, folder=folder)
            record.write()

        tasks = Tasks(
            spec,
            backend,
            processes,
            steps,
            root=root,
            verbose=verbose,
            containers=containers,
            environment={"KUBESTILL_TYPED": ",".join(typed_modules(arguments))},
            begun=begin,
        )
        shown = Lines(steps) if verbose else io.StringIO()
        with _kfp_tamed(backend, tasks) as complaints, contextlib.redirect_stdout(shown):
            local.init(
                local.SubprocessRunner(use_venv=False),
                pipeline_root=root,
                workspace_root=os.path.join(root, ".workspace"),
                raise_on_error=True,
            )
            try:
                pipeline_orchestrator.run_local_pipeline(spec, arguments)
            except Exception as error:
                # A failed task has said so itself; anything else is between kfp and this machine.
                if tasks.result.failed is None:
                    said = [*complaints, f"{type(error).__name__}: {error}"]
                    tasks.result.error = "\n".join(said)
            except BaseException:
                record = replace(record, state="interrupted")
                raise
            finally:
                if record.folder:
                    _close(record, tasks.result)
        if not name_cause(tasks.result) and (freed := drop_made_rows(root, record.pipeline)):
            steps.say(
                f"    {freed / 1e6:,.0f} MB of rows that earlier runs made are deleted; set "
                f"{KEEP_ROWS} to keep them"
            )
    return tasks.result


def _close(record: RunRecord, ended: LocalRun) -> None:
    """Name what a run made, and write down how it ended."""
    ended.reports = collect_reports(ended)
    ended.models = name_models(ended)
    cause = name_cause(ended)
    state = "failed" if cause else "succeeded"
    replace(
        record,
        ended=now(),
        state=state if record.state == "running" else record.state,
        cause=plain(cause),
        steps=tuple(
            StepRecord(
                name=task.name,
                ok=task.ok,
                seconds=task.seconds,
                error=plain(task.error),
                log=_below(task.log, record.folder),
            )
            for task in ended.tasks
        ),
        models={name: _below(uri, record.folder) for name, uri in ended.models.items()},
        reports={name: _below(path, record.folder) for name, path in ended.reports.items()},
    ).write()


def _below(path: str, folder: str) -> str:
    """Return a path relative to the run's folder, so that the folder can be moved."""
    return os.path.relpath(path, folder) if path.startswith(folder + os.sep) else path


def typed_modules(arguments: Mapping[str, Any]) -> list[str]:
    """Return the modules and hosts that the run's own parameters name, its user's word.

    `kubestill.runtime.base.trust` tells what it is good for.
    """
    named = [
        value
        for name, value in arguments.items()
        if name.endswith(("network", "system", "method", "teacher"))
    ]
    # Of several teachers, the options name each.
    several = (arguments.get("teacher_options") or {}).get("several") or {}
    named += [one.get("source") for one in several.get("teachers") or []]
    found: set[str] = set()
    for value in named:
        if isinstance(value, str):
            if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", value):
                found.add(value.partition(":")[0])
            elif host := re.match(r"https?://[^/?#,]+", value):
                found.add(host[0])
    return sorted(found)


def _check_size(arguments: Mapping[str, Any]) -> None:
    """Refuse more parameters than Kubeflow's API takes: it would not start the run."""
    limit = int(os.environ.get("MAX_PARAMETER_BYTES", "10000"))
    sizes = {name: len(json.dumps(as_sent(value))) for name, value in arguments.items()}
    total = len(json.dumps(as_sent(arguments), separators=(",", ":")).encode())
    if total > limit:
        problems = Problems()
        largest = max(sizes, key=sizes.__getitem__)
        problems.add(
            largest,
            f"{sizes[largest]} bytes",
            f"all parameters together are {total} bytes, and Kubeflow takes {limit}; write it to a "
            "file and pass its URI",
        )
        problems.raise_if_any()


def _prepared(spec: pipeline_spec_pb2.PipelineSpec) -> pipeline_spec_pb2.PipelineSpec:
    """Return the pipeline as `kfp.local` reads it.

    Retries are ours to make. In conditions it knows an output only if that is called `Output`, or
    by the name that stands here; any other condition would count as false. Of a task that it runs
    it tells the component alone, so that each gets one of its own.
    """
    spec = copy.deepcopy(spec)
    _separate(spec)
    for component in [spec.root, *spec.components.values()]:
        for task in component.dag.tasks.values():
            task.ClearField("retry_policy")
            for name, given in task.inputs.parameters.items():
                if given.HasField("task_output_parameter"):
                    source = given.task_output_parameter
                    channel = f"{source.producer_task}--{source.output_parameter_key}"
                    task.trigger_policy.condition = task.trigger_policy.condition.replace(
                        f"['{name}']", f"['pipelinechannel--{channel}']"
                    )
    return spec


def _separate(spec: pipeline_spec_pb2.PipelineSpec) -> None:
    """Give each task a component that no other task has, down through nested pipelines."""
    shared = {name: copy.deepcopy(one) for name, one in spec.components.items()}
    spec.components.clear()
    dags = [spec.root.dag]
    while dags:
        for key, task in sorted(dags.pop().tasks.items()):
            count = sum(name.partition("--")[0] == f"comp-{key}" for name in spec.components)
            name = f"comp-{key}--{count}" if count else f"comp-{key}"
            spec.components[name].CopyFrom(shared[task.component_ref.name])
            task.component_ref.name = name
            if spec.components[name].HasField("dag"):
                dags.append(spec.components[name].dag)


@contextlib.contextmanager
def _kfp_tamed(backend: Backend, tasks: Tasks) -> Iterator[list[str]]:
    """Put our parts into kfp, and put back what it changes for the whole process.

    Yields the errors that it logs: it swallows the exceptions behind them.
    """
    complaints: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        if record.levelno >= logging.ERROR:
            complaints.append(said)
        if said.startswith("Condition evaluation failed"):
            # kfp would go on as if it were false, and the run end well without the branch.
            raise KubestillError(f"{said}; kfp.local cannot tell; compare with plain words")
        return True

    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    store, run_task = kfp_io.IOStore, task_dispatcher.run_single_task_implementation
    run_loop = ParallelExecutor.execute_parallel_tasks
    name_run = executor_input_utils.get_local_pipeline_resource_name

    def run_noted_loop(executor: ParallelExecutor, **given: Any) -> Any:
        loop = given["tasks"][0][0].rpartition("-iteration-")[0]
        tasks.begin_loop(loop, len(given["tasks"]))
        outputs, ended = run_loop(executor, **given)
        if ended == status.Status.SUCCESS:
            tasks.end_loop(loop)
        return outputs, ended

    # Not a handler: kfp clears those.
    root.addFilter(keep)
    kfp_io.IOStore = functools.partial(Handover, backend)
    task_dispatcher.run_single_task_implementation = tasks.run
    executor_input_utils.get_local_pipeline_resource_name = tasks.begin_run
    ParallelExecutor.execute_parallel_tasks = run_noted_loop
    try:
        with warnings.catch_warnings():
            # That display names and resources have no effect here.
            warnings.filterwarnings("ignore", module=r"kfp\.local\..*")
            yield complaints
    finally:
        kfp_io.IOStore = store
        task_dispatcher.run_single_task_implementation = run_task
        executor_input_utils.get_local_pipeline_resource_name = name_run
        ParallelExecutor.execute_parallel_tasks = run_loop
        root.removeFilter(keep)
        root.handlers[:] = handlers
        root.setLevel(level)

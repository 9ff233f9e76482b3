"""How our pipelines create their tasks: what each takes, where it runs, how often it retries."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from kfp import kubernetes
from kfp.dsl import PipelineTask
from kfp.dsl.tasks_group import TasksGroup

from kubestill.pipelines._resources import DEFAULT, Resources

_resources = DEFAULT


class Tasks:
    """Creates the tasks of one pipeline run and passes the pipeline's parameters to them.

    A task takes every parameter that pipeline and component have in common, by its name. The body
    of a pipeline therefore spells out only what is particular to a task: its artifacts, and
    parameters that have another name or value there.
    """

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        """Start from the parameters of a pipeline: its `locals()`, in its first line."""
        self._parameters = dict(parameters)
        self._place = Placement(
            **{field.name: parameters[field.name] for field in fields(Placement)}
        )

    def __call__(
        self,
        component: Any,
        prefix: str = "",
        *,
        name: str = "",
        leave: Collection[str] = (),
        **inputs: Any,
    ) -> PipelineTask:
        """Create a task and place it.

        Args:
            component: What the task runs; its decorator is typed as returning a function.
            prefix: Parameters that start with it come first: with `student_`, the component's
                `steps` is the pipeline's `student_steps`, and `seed` is `seed`.
            name: The task's name in the UI, the API and the paths of its outputs; empty takes the
                component's. kfp would number a second task of one component: `train-student-2`.
            leave: Parameters that stay at the component's default.
            **inputs: Artifacts, and parameters that override those of the pipeline.
        """
        spec = component.component_spec
        assert set(leave) <= set(spec.inputs or {}), leave
        for port, part in (spec.inputs or {}).items():
            if port in inputs or port in leave or str(part.type).startswith("system."):
                continue
            for own in (prefix + port, port):
                if own in self._parameters:
                    inputs[port] = self._parameters[own]
                    break
        # kfp names a task after its component and offers a display name, which the API leaves out.
        before, spec.name = spec.name, name or spec.name
        try:
            task = component(**inputs)
        finally:
            spec.name = before
        # Resources go by the component's own name.
        return self._place(task)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the tasks of a run go: parameters of the pipeline, known when the run starts.

    Tasks with a `device` parameter (training, labelling, gates) run in `gpu_image`, on the nodes
    that `node_selector` and `tolerations` select; with empty `accelerators` they run on CPUs. All
    other tasks are small: they run in `image` on any node and request what `resources.yaml` says.
    """

    image: str
    gpu_image: str
    cpu: str
    memory: str
    accelerator: str
    accelerators: str
    node_selector: dict
    tolerations: list

    def __call__(self, task: PipelineTask) -> PipelineTask:
        """Set a task's image, resources and retries, and turn caching off.

        Argo counts the maximum backoff from the start of the first attempt: with Kubeflow's default
        of an hour it never retries a long training run (kubeflow/pipelines#13452). Kubeflow's cache
        keys hold no content, so a source that has changed would go unnoticed.
        """
        step = _resources.of(task.component_spec.name)
        with _no_stack_walks():
            if "device" in (task.component_spec.inputs or {}):
                self._on_device(task, step)
            else:
                task.set_container_image(self.image)
                _size(task, step.cpu, step.memory)
            for name, value in step.env.items():
                task.set_env_variable(name, value)
        for name, place in step.secrets.items():
            secret, key = place.split("/")
            kubernetes.use_secret_as_env(task, secret, {key: name})
        task.set_retry(
            num_retries=step.retries,
            backoff_duration=step.backoff,
            backoff_factor=step.backoff_factor,
            backoff_max_duration=step.backoff_max,
        )
        if step.timeout_s:
            kubernetes.set_timeout(task, step.timeout_s)
        return task.set_caching_options(enable_caching=False)

    def _on_device(self, task: PipelineTask, step: Resources) -> None:
        task.set_container_image(self.gpu_image)
        own = _resources.steps.get(task.component_spec.name, {})
        sizes = own.get("cpu", self.cpu), own.get("memory", self.memory)
        _size(task, *sizes)
        # kfp registers the channel of the image, but none of these: a loop would not pass them on.
        chosen = (*sizes, self.accelerator, self.accelerators)
        task.register_pipeline_channels([one for one in chosen if not isinstance(one, str)])
        task.set_accelerator_type(self.accelerator).set_accelerator_limit(self.accelerators)
        kubernetes.add_node_selector_json(task, self.node_selector)
        kubernetes.add_toleration_json(task, self.tolerations)
        if step.shared_memory:
            # Data-loading workers pass tensors through it; a container's default is 64 MB.
            kubernetes.empty_dir_mount(
                task, "shm", "/dev/shm", medium="Memory", size_limit=step.shared_memory
            )


@contextmanager
def group(made: TasksGroup) -> Iterator[Any]:
    """Enter a loop, a branch or an exit handler, and name it in the UI instead of numbering it."""
    with made as value:
        assert made.display_name, "a group needs a name"
        made.name = made.display_name
        yield value


def parallelism() -> int | None:
    """Return how many iterations of a fan-out run at a time; None for all."""
    return _resources.parallelism or None


@contextmanager
def using(resources: Resources) -> Iterator[None]:
    """Compile the pipelines defined inside the block with other resources."""
    global _resources
    before, _resources = _resources, resources
    try:
        yield
    finally:
        _resources = before


@contextmanager
def _no_stack_walks() -> Iterator[None]:
    """Keep kfp from reading the source of the whole call stack in every setter.

    kfp does so to name the caller in an error that tasks of components never raise; it took 12 of
    the 13 seconds that importing our pipelines needed.
    """
    checked = PipelineTask._ensure_container_spec_exists
    PipelineTask._ensure_container_spec_exists = lambda task: None
    try:
        yield
    finally:
        PipelineTask._ensure_container_spec_exists = checked


def _size(task: PipelineTask, cpu: str, memory: str) -> None:
    """Request CPU without a limit, which would throttle it, and memory with the same limit."""
    task.set_cpu_request(cpu)
    task.set_memory_request(memory).set_memory_limit(memory)

"""Where every task of our pipelines runs, and how it fails, retries and caches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kfp import kubernetes
from kfp.dsl import PipelineTask
from kfp.dsl.base_component import BaseComponent
from kfp.dsl.tasks_group import TasksGroup

from kubestill.pipelines._resources import DEFAULT, Resources

_resources = DEFAULT


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What a run chooses for its tasks: parameters of the pipeline, known when it starts.

    Tasks that have a device (training, labelling, gates) run in `gpu_image` on the nodes that
    `node_selector` and `tolerations` name. With no `accelerators` they run on CPUs. All others are
    small, run in `image` anywhere, and ask for what `resources.yaml` says.
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
        """Place a task, retry it, and never skip it.

        Argo counts the backoff's maximum from the start of the first attempt: with Kubeflow's
        default of an hour a long training is never retried (kubeflow/pipelines#13452). Kubeflow's
        cache keys hold no content: a source that changed would go unnoticed, so caching is off.
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
        # kfp registers the image by itself, but none of these: a loop would not hand them on.
        chosen = (*sizes, self.accelerator, self.accelerators)
        task.register_pipeline_channels([one for one in chosen if not isinstance(one, str)])
        task.set_accelerator_type(self.accelerator).set_accelerator_limit(self.accelerators)
        kubernetes.add_node_selector_json(task, self.node_selector)
        kubernetes.add_toleration_json(task, self.tolerations)
        if step.shared_memory:
            # Workers that load data hand over tensors here; a container's default is 64 MB.
            kubernetes.empty_dir_mount(
                task, "shm", "/dev/shm", medium="Memory", size_limit=step.shared_memory
            )


def named(name: str, component: BaseComponent) -> Callable[..., PipelineTask]:
    """Call a component's task by a name of its own, in the UI, the API and the paths of outputs.

    kfp names a task after its component and numbers the second: `train-student-2`. A display name
    is all that it lets a pipeline say, and the API does not tell it.
    """

    def create(**inputs: Any) -> PipelineTask:
        spec = component.component_spec
        own, spec.name = spec.name, name
        try:
            return component(**inputs)
        finally:
            spec.name = own

    return create


@contextmanager
def group(made: TasksGroup) -> Iterator[Any]:
    """Enter a loop, a branch or an exit handler, and call it by its name instead of a number."""
    with made as value:
        assert made.display_name, "a group needs a name"
        made.name = made.display_name
        yield value


def parallelism() -> int | None:
    """How many iterations of a fan-out run at a time; None for all."""
    return _resources.parallelism or None


@contextmanager
def using(resources: Resources) -> Iterator[None]:
    """Compile the pipelines that are defined inside with other resources."""
    global _resources
    before, _resources = _resources, resources
    try:
        yield
    finally:
        _resources = before


@contextmanager
def _no_stack_walks() -> Iterator[None]:
    """Spare kfp what it does in every setter: read the source of the whole call stack.

    It names the caller in an error that tasks of components never see, and took 12 of the 13
    seconds in which our pipelines were imported.
    """
    checked = PipelineTask._ensure_container_spec_exists
    PipelineTask._ensure_container_spec_exists = lambda task: None
    try:
        yield
    finally:
        PipelineTask._ensure_container_spec_exists = checked


def _size(task: PipelineTask, cpu: str, memory: str) -> None:
    """Ask for processors, and for memory with the same limit: no limit slows a processor down."""
    task.set_cpu_request(cpu)
    task.set_memory_request(memory).set_memory_limit(memory)

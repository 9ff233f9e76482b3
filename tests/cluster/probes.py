"""Pipelines of a stranger, as the docs tell to write them: each shows one thing of a cluster.

Their names begin with the session's mark, so that whatever is left of them can be told.
"""

# Kubeflow injects outputs and turns calls into tasks.
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportFunctionMemberAccess=false
from collections.abc import Callable
from typing import Any

import yaml
from kfp import compiler, dsl
from session import Cluster

from kubestill.components import generate_synthetic, train_student

_PADDING = "PADDING"


def greet(who: str) -> str:
    print(f"hello {who}")
    return who


def check_values(
    whole: int,
    real: float,
    yes: bool,
    no: bool,
    text: str,
    blank: str,
    table: dict,
    empty_table: dict,
    rows: list,
    empty_rows: list,
    expected: str,
):
    import json

    given = [whole, real, yes, no, text, blank, table, empty_table, rows, empty_rows]
    arrived = json.dumps(given, sort_keys=True)
    if arrived != expected:
        raise ValueError(f"arrived as {arrived}, not as {expected}")


def produce(data: dsl.Output[dsl.Dataset]):
    with open(data.path, "w") as file:
        file.write("three rows")
    data.metadata.update(rows=3, share=0.25, kind="probe")


def consume(given: bool, data: dsl.Input[dsl.Dataset] = None):
    if not given:
        assert data is None, "nothing was given, and something arrived"
        return
    assert data is not None, "the optional input did not arrive"
    with open(data.path) as file:
        assert file.read() == "three rows", "the file is another"
    wanted = {"rows": 3, "share": 0.25, "kind": "probe"}
    arrived = {name: data.metadata.get(name) for name in wanted}
    assert arrived == wanted, f"metadata arrived as {arrived}"


def count(root: str) -> str:
    import uuid

    from kubestill.runtime.stores import open_store

    name = f"counted-{uuid.uuid4().hex}"
    open_store(root).put(name, b"")
    return name


def need(root: str, counted: str):
    import uuid

    from kubestill.runtime.stores import open_store

    store = open_store(root)
    store.put(f"tried-{uuid.uuid4().hex}", b"")
    if "allowed" not in [entry.key for entry in store.list()]:
        raise ValueError(f"nobody has allowed {counted.partition('-')[0]} yet")


def fill(item: int) -> int:
    return len("PADDING") + item


class Probes:
    """Compiles them for one cluster."""

    def __init__(self, cluster: Cluster):
        self._cluster = cluster

    def greeting(self, word: str) -> str:
        """One step that takes a word, for schedules; another `word` makes another version."""
        step = self._component(greet)

        def pipeline(who: str = word):
            self._plain(step(who=who))

        return self._compile("greet", pipeline)

    def values(self) -> str:
        """Parameters of every kind, each held against what was given."""
        step = self._component(check_values)

        def pipeline(
            whole: int,
            real: float,
            yes: bool,
            no: bool,
            text: str,
            expected: str,
            table: dict,
            rows: list,
            blank: str = "",
            empty_table: dict = {},
            empty_rows: list = [],
        ):
            self._plain(
                step(
                    whole=whole,
                    real=real,
                    yes=yes,
                    no=no,
                    text=text,
                    blank=blank,
                    table=table,
                    empty_table=empty_table,
                    rows=rows,
                    empty_rows=empty_rows,
                    expected=expected,
                )
            )

        return self._compile("values", pipeline)

    def optional(self) -> str:
        """An optional artifact, given to one step and not to another."""
        make, take = self._component(produce), self._component(consume)

        def pipeline():
            made = self._plain(make())
            self._plain(take(given=True, data=made.outputs["data"])).set_display_name("with")
            self._plain(take(given=False)).set_display_name("without")

        return self._compile("optional", pipeline)

    def permission(self) -> str:
        """A step that is done, and one that fails until an object `allowed` lies in the store."""
        first, second = self._component(count), self._component(need)

        def pipeline(root: str):
            counted = self._plain(first(root=root))
            self._plain(second(root=root, counted=counted.output))

        return self._compile("permission", pipeline)

    def training(self) -> str:
        """A quarter of a minute of training with frequent checkpoints, by our own components."""

        def pipeline(experiment: str, checkpoint_uri: str, steps: int = 2000):
            rows = self._plain(generate_synthetic(system="heat", rows=4096, seed=1), memory="1Gi")
            trained = self._plain(
                train_student(
                    dataset=rows.outputs["dataset"],
                    mode="overfit",
                    network_args={"hidden": [256, 256, 256]},
                    steps=steps,
                    batch_size=512,
                    checkpoint_uri=checkpoint_uri,
                    experiment=experiment,
                    settings={"threads": 1, "checkpoints": {"recovery_seconds": 1.0}},
                ),
                memory="1Gi",
                retries=3,
            )
            trained.after(rows)

        return self._compile("training", pipeline)

    def crowd(self, *, steps: int, padding: int) -> str:
        """Many steps with long commands: more than Argo keeps in a workflow as it is."""
        step = self._component(fill)

        def pipeline():
            with dsl.ParallelFor(list(range(steps)), name="crowd") as item:
                self._plain(step(item=item))

        path = self._compile("crowd", pipeline)
        with open(path, encoding="utf-8") as file:
            documents = list(yaml.safe_load_all(file))
        for executor in documents[0]["deploymentSpec"]["executors"].values():
            command = executor["container"]["command"]
            executor["container"]["command"] = [
                word.replace(_PADDING, "padding " * (padding // 8)) for word in command
            ]
        with open(path, "w", encoding="utf-8") as file:
            yaml.safe_dump_all(documents, file)
        return path

    def _component(self, function: Callable[..., Any]) -> Any:
        return dsl.component(function, base_image=self._cluster.image, install_kfp_package=False)

    def _plain(self, task: Any, *, memory: str = "256Mi", retries: int = 0) -> Any:
        """Ask for little, run in our image, and never skip."""
        task.set_container_image(self._cluster.image)
        task.set_cpu_request("50m").set_memory_request(memory).set_memory_limit(memory)
        if retries:
            task.set_retry(num_retries=retries, backoff_duration="5s", backoff_max_duration="48h")
        return task.set_caching_options(enable_caching=False)

    def _compile(self, name: str, function: Callable[..., Any]) -> str:
        made = dsl.pipeline(function, name=f"{self._cluster.mark}-{name}")
        path = str(self._cluster.folder / f"{name}.yaml")
        compiler.Compiler().compile(made, path)
        return path

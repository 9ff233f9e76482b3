"""What it costs to run a step in our image: its start, its imports, the size of the image.

`plan-shards`, our component that does next to nothing, is held against a bare lightweight component
of the same work, in the same image and runner. Imports are timed in a container that is already
warm, from the start of its Python to its end, against `import torch` alone.

    python -m bench.bench_containers [--rounds 7]     # needs a Docker engine and `make images`
"""

import argparse
import os
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from kfp import dsl  # noqa: TID251

from bench.harness import Clocked, Turns, clock, take_turns
from bench.results import Measure, write
from kubestill.components import plan_shards
from kubestill.components._image import IMAGE
from kubestill.local import Containers, run_pipeline

DOCKER = os.environ.get("DOCKER", "docker")
RUNNERS: dict[str, Containers | None] = {
    "container": Containers(arguments=("--network=host",)),
    "process": None,
}
IMPORTS = {
    "torch": "import torch",
    "a training": "import kubestill.runtime.steps.train_teacher",
    "an evaluation": "import kubestill.runtime.steps.continuous_eval",
}


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def bare(shards: int = 1) -> list[int]:
    return list(range(shards))


@dsl.pipeline(name="ours")
def ours_alone():
    plan_shards(shards=2)


@dsl.pipeline(name="bare")
def bare_alone():
    bare(shards=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    measures: list[Measure] = []
    for name, containers in RUNNERS.items():
        measures += overhead(name, containers, rounds)
    with warm_container() as container:
        measures += imports(container, rounds)
    size = int(ask("inspect", "--format", "{{.Size}}", IMAGE)) / 1e9
    measures.append(
        Measure(
            name="size of the CPU image",
            value=size,
            bar=1.05,
            at_least=False,
            unit="GB",
            peer="",
        )
    )
    write("containers", measures)


def overhead(name: str, containers: Containers | None, rounds: int) -> list[Measure]:
    """Return what a step takes, and how much longer ours takes than a bare one."""
    with tempfile.TemporaryDirectory() as root:

        def step(pipeline: Any) -> Clocked:
            def run() -> None:
                done = run_pipeline(pipeline.pipeline_spec, {}, root=root, containers=containers)
                assert (done.failed, done.error) == (None, "")

            return clock(run)

        turns = take_turns({"ours": step(ours_alone), "bare": step(bare_alone)}, rounds)
    return [
        at_most(turns, "ours", "bare", 1.1, f"a step that does nothing, in a {name}"),
        Measure(
            name=f"a step that does nothing, in a {name}",
            value=turns.median("ours"),
            unit="s",
            peer="",
        ),
    ]


def imports(container: str, rounds: int) -> list[Measure]:
    """Return how long Python takes to load what steps need, against torch alone."""

    def load(code: str) -> Clocked:
        return clock(lambda: ask("exec", container, "python3", "-c", code))

    turns = take_turns({name: load(code) for name, code in IMPORTS.items()}, rounds)
    return [
        at_most(turns, "a training", "torch", 1.2, "imports of a training, in a warm container"),
        at_most(turns, "an evaluation", "torch", None, "imports of an evaluation, the same"),
        Measure(
            name="imports of torch alone, the same", value=turns.median("torch"), unit="s", peer=""
        ),
    ]


def at_most(turns: Turns, above: str, below: str, bar: float | None, name: str) -> Measure:
    """Return the ratio of two rivals, held against what it may be."""
    return Measure(
        name=f"{name}: over {below}",
        value=turns.ratio(above, below),
        bar=bar,
        at_least=False,
        unit="times",
        peer=below,
    )


@contextmanager
def warm_container() -> Generator[str]:
    """Keep a container of the image running."""
    name = ask("run", "--detach", "--rm", IMAGE, "sleep", "infinity")
    try:
        yield name
    finally:
        ask("kill", name)


def ask(*arguments: str) -> str:
    done = subprocess.run([DOCKER, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main()

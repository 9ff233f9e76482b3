"""Every recorded step, in the image, with the volumes and the user that a cluster gives it.

What the launcher handed over is handed over whole, to the compiled step's own command. `/minio`
holds the artifacts that it downloaded; nothing else may be written but scratch folders.
"""

# The helpers lie beside the in-process replays and are found by path.
# pyright: reportMissingImports=false

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pods import COMPONENTS, DOCKER

from emulators import S3Server
from kubestill.runtime.base.processor import STEERING

sys.path.insert(0, str(Path(__file__).parents[1] / "integration" / "recordings"))
pytest.register_assert_rewrite("comparing")

from comparing import check_outputs, check_registry, check_same  # noqa: E402
from replaying import Ended, Recording, Volumes, names, read_outputs  # noqa: E402
from story import TELLERS, Story, tell  # noqa: E402

pytestmark = [pytest.mark.container, pytest.mark.timeout(900)]

USER = "54321:0"
SCRATCH = ("/tmp", "/gcs", "/s3", "/.cache", "/.config", "/.local")
"""Where Kubeflow and hardened clusters mount emptyDirs, beside `/minio`."""


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([DOCKER, *arguments], capture_output=True, text=True)


def container(component: str) -> dict[str, Any]:
    """Return image, command and arguments of a compiled component."""
    compiled = yaml.safe_load((COMPONENTS / component / "component.yaml").read_text())
    (executor,) = compiled["deploymentSpec"]["executors"].values()
    return executor["container"]


@pytest.fixture(scope="module")
def threads() -> Iterator[None]:
    """As many as a container has: the number of threads is part of a model's bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def environment(seaweedfs: S3Server) -> Iterator[dict[str, str]]:
    """What finds the server behind `minio://`, here and in a container."""
    found = {"AWS_ENDPOINT_URL": seaweedfs.host, **seaweedfs.keys}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in found.items():
            patch.setenv(name, value)
        # numpy computes other bits in a container that is not told what this machine is told.
        told = {name: os.environ[name] for name in STEERING if name in os.environ}
        yield {**found, **told, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def stories(
    seaweedfs: S3Server, environment: dict[str, str], threads: None, tmp_path_factory
) -> Callable[[str], Story]:
    """The runs of a pipeline, told on this machine when they are first asked for; `story.py`."""

    @cache
    def find(pipeline: str) -> Story:
        return tell(pipeline, tmp_path_factory.mktemp("story"), seaweedfs.client)

    return find


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> Iterator[Path]:
    """A folder for volumes, which whoever runs the tests may remove afterwards."""
    folder = tmp_path_factory.mktemp("volumes")
    folder.chmod(0o777)
    yield folder
    image = container("train_teacher")["image"]
    mount = f"--volume={folder}:/volumes"
    docker("run", "--rm", f"--user={USER}", mount, image, "chmod", "-R", "a+rwX", "/volumes")


def run(
    component: str, executor_input: dict[str, Any], mounted: Volumes, environment: dict[str, str]
) -> tuple[Ended | None, str]:
    """Run a step in a pod's place; returns what it told the launcher, if anything, and its log."""
    place = mounted.folder / "minio"
    for folder in (place, *place.rglob("*")):
        folder.chmod(0o777 if folder.is_dir() else 0o666)
    options = ["--rm", "--network=host", "--shm-size=1g", f"--user={USER}", "--read-only"]
    options += ["--cap-drop=ALL", "--security-opt=no-new-privileges", f"--volume={place}:/minio"]
    options += [f"--tmpfs={folder}:mode=1777" for folder in SCRATCH]
    options += [f"--env={name}={value}" for name, value in environment.items()]
    made = container(component)
    words = [*made["command"], *made["args"]]
    given = [word.replace("{{$}}", json.dumps(executor_input)) for word in words]
    done = docker("run", *options, made["image"], *given)
    log = done.stdout + done.stderr
    return read_outputs(executor_input, mounted.places) if done.returncode == 0 else None, log


@pytest.mark.parametrize("name", [name for pipeline in sorted(TELLERS) for name in names(pipeline)])
def test_a_recorded_step_ends_in_its_container_as_it_does_locally(
    name: str, stories: Callable[[str], Story], volumes: Path, environment: dict[str, str]
) -> None:
    story = stories(name.partition(".")[0])
    recording, mounted = Recording.read(name), Volumes(volumes / name)
    (mounted.folder / "minio").mkdir(parents=True)
    executor_input = story.prepare(recording, mounted)
    ended, log = run(recording.component, executor_input, mounted, environment)
    assert ended is not None, log
    check_outputs(recording, ended)
    check_same(recording, ended, story)
    check_registry(recording, story)

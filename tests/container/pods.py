"""Kubeflow's driver and the pods of a step, with Docker for Kubernetes.

The driver settles a task's executor input once; every attempt is a fresh container that gets the
same one. In it runs `launch.py`, which does what Kubeflow's launcher does.
"""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

COMPONENTS = Path(__file__).parents[2] / "components"
LAUNCHER = Path(__file__).with_name("launch.py")
DOCKER = os.environ.get("DOCKER", "docker")


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """How one pod of a task went."""

    code: int
    log: str
    published: dict[str, Any] = field(default_factory=dict[str, Any])
    """`parameters` and `artifacts`, as the launcher hands them to Kubeflow; empty after failure."""

    def artifact(self, name: str) -> dict[str, Any]:
        """One output, as an input of another task."""
        return self.published["artifacts"][name]["artifacts"][0]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of a run, as its driver left it."""

    root: str
    """URI below which Kubeflow keeps the artifacts of everybody."""
    folder: str
    """URI below which this task's own outputs go."""
    component: dict[str, Any]
    container: dict[str, Any]
    """Image, command and arguments."""
    executor_input: dict[str, Any]
    scratch: Path
    environment: dict[str, str]

    def attempt(self, *, kill_at: str = "") -> Attempt:
        """Run the task in a fresh container, hardened as clusters do it.

        Args:
            kill_at: Kill the container as soon as a line of its log holds this.
        """
        name = f"pod-{uuid.uuid4().hex[:12]}"
        published = self.scratch / name
        published.mkdir()
        published.chmod(0o777)
        lines: list[str] = []
        with subprocess.Popen(
            [DOCKER, *self._arguments(name, published)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout
            for line in process.stdout:
                lines.append(line)
                if kill_at and kill_at in line:
                    subprocess.run([DOCKER, "kill", name], check=True, capture_output=True)
                    kill_at = ""
        assert not kill_at, f"never said {kill_at!r}:\n" + "".join(lines)
        file = published / "published.json"
        content = json.loads(file.read_text()) if file.exists() else {}
        return Attempt(code=process.returncode, log="".join(lines), published=content)

    def _arguments(self, name: str, published: Path) -> list[str]:
        options = ["run", "--rm", "--name", name, "--network=host", "--shm-size=1g"]
        # A cluster may give any user, and emptyDirs where the launcher keeps artifacts.
        options += ["--user=54321:0", "--read-only", "--cap-drop=ALL"]
        options += ["--security-opt=no-new-privileges", "--tmpfs=/tmp:mode=1777"]
        options += ["--tmpfs=/gcs:mode=1777,uid=54321"]
        options += [f"--volume={LAUNCHER}:/kfp-launcher/launch.py:ro"]
        options += [f"--volume={published}:/published"]
        # A retry is another pod.
        environment = self.environment | {"KFP_POD_NAME": name, "KFP_POD_UID": name}
        options += [f"--env={variable}={value}" for variable, value in environment.items()]
        launcher = ["python3", "/kfp-launcher/launch.py", f"--pipeline_root={self.root}"]
        launcher += [f"--executor_input={json.dumps(self.executor_input)}"]
        launcher += [f"--component_spec={json.dumps(self.component)}"]
        launcher += ["--publish=/published/published.json", "--"]
        image, command = self.container["image"], self.container["command"]
        return [*options, image, *launcher, *command, *self.container["args"]]


def drive(
    component: str,
    *,
    root: str,
    scratch: Path,
    environment: dict[str, str],
    artifacts: dict[str, dict[str, Any]] | None = None,
    **parameters: Any,
) -> Task:
    """Do what Kubeflow's driver does for a task: settle its inputs and where its outputs go.

    Args:
        component: Folder of the component, whose checked-in `component.yaml` is what runs.
        root: URI of the pipeline root.
        scratch: Folder of this machine for what the launcher publishes.
        environment: Further variables of the pods.
        artifacts: Inputs, as other tasks published them.
        **parameters: Those that are given; for others their defaults hold.
    """
    compiled = yaml.safe_load((COMPONENTS / component / "component.yaml").read_text())
    (spec,) = compiled["components"].values()
    (executor,) = compiled["deploymentSpec"]["executors"].values()
    name = component.replace("_", "-")
    folder = f"{root}/{name}/{uuid.uuid4()}/{name}/{uuid.uuid4()}"
    outputs = spec["outputDefinitions"]
    made = {
        port: {"name": port, "uri": f"{folder}/{port}", "type": one["artifactType"]}
        for port, one in outputs.get("artifacts", {}).items()
    }
    files = {port: {"outputFile": f"/tmp/kfp/outputs/{port}"} for port in outputs["parameters"]}
    return Task(
        root=root,
        folder=folder,
        component=spec,
        container=executor["container"],
        executor_input={
            "inputs": {"artifacts": _lists(artifacts or {}), "parameterValues": parameters},
            "outputs": {
                "artifacts": _lists(made),
                "parameters": files,
                "outputFile": f"/gcs/{folder.removeprefix('gs://')}/output_metadata.json",
            },
        },
        scratch=scratch,
        environment=environment,
    )


def _lists(artifacts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {port: {"artifacts": [artifact]} for port, artifact in artifacts.items()}

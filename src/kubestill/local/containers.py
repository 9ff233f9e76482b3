"""Run the tasks of a local run in containers, each with the exit code that it really had.

kfp's own DockerRunner removes a container as it ends, and takes one that it no longer finds for a
success: a task that fails at its start is reported as done. Here a container stays until its exit
code has been read from it, and anything that keeps us from reading it is a failure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from dataclasses import dataclass

from kubestill.errors import KubestillError

LOST = 125
"""Exit code where nothing is known of the container, as Docker's own for "could not start"."""


@dataclass(frozen=True, kw_only=True)
class Containers:
    """How to start a container for a task."""

    arguments: tuple[str, ...] = ()
    """Further arguments of `docker run`, such as `--read-only` or `--memory=2g`."""
    program: str = ""
    """Docker's client; empty takes $DOCKER, or `docker`."""

    @property
    def _docker(self) -> str:
        return self.program or os.environ.get("DOCKER") or "docker"

    def check(self) -> None:
        """Make sure that there is an engine.

        Raises:
            KubestillError: There is none that answers.
        """
        try:
            self._ask("version", "--format", "{{.Server.Version}}")
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", "") or str(error)
            raise KubestillError(
                f"no Docker engine answers `{self._docker} version`: {said.strip()}; start it, or "
                "run without --runner docker"
            ) from error

    def wrap(
        self, command: list[str], image: str, root: str, environment: dict[str, str]
    ) -> tuple[str, list[str]]:
        """Turn a task's command into one that runs it in a container; returns its name too.

        Args:
            command: As `kfp.local` would start it on this machine.
            image: What to run it in; `{{$...}}` stands for the task's own parameter.
            root: Folder of the runs, absolute; the container sees it under the same path.
            environment: Further variables.
        """
        name = f"kubestill-{uuid.uuid4().hex[:12]}"
        here = os.getcwd()
        options = ["--name", name, "--user", f"{os.getuid()}:{os.getgid()}", "--shm-size", "1g"]
        # What parameters name by local paths lies below here; only the runs may be written.
        mounts = {here: f"{here}:{here}:ro", root: f"{root}:{root}"}
        for mount in mounts.values():
            options += ["--volume", mount]
        options += ["--workdir", here, "--tmpfs", "/tmp:exec,mode=1777"]
        for variable, value in environment.items():
            options += ["--env", f"{variable}={value}"]
        inside = [part.replace(sys.executable, "python3") for part in command]
        named = _image(command) if "{{$" in image else image
        return name, [self._docker, "run", *options, *self.arguments, named, *inside]

    def verdict(self, name: str, code: int) -> tuple[int, str]:
        """Read how a container ended, and remove it.

        Args:
            name: Of the container.
            code: What the client that watched it ended with.

        Returns:
            Its own exit code, never 0 where that is unknown, and why it was ended, if it was.
        """
        try:
            state = json.loads(self._ask("inspect", "--format", "{{json .State}}", name))
        except (OSError, subprocess.CalledProcessError, ValueError):
            return code or LOST, "" if code else "its container is gone"
        self._ask("rm", "--force", name)
        if state["Running"]:
            return code or LOST, "it was still running when Docker's client ended"
        killed = "out of memory" if state["OOMKilled"] else state["Error"]
        return state["ExitCode"], killed

    def _ask(self, *arguments: str) -> str:
        done = subprocess.run(
            [self._docker, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout


def _image(command: list[str]) -> str:
    executor_input = json.loads(command[command.index("--executor_input") + 1])
    return executor_input["inputs"]["parameterValues"]["base_image"]

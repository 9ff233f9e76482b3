"""Run the tasks of a local run in containers, each with the exit code that it really had.

kfp's own DockerRunner removes a container as it ends, and takes one that it no longer finds for a
success: a task that fails at its start is reported as done. Here a container stays until its exit
code has been read from it, and anything that keeps us from reading it is a failure.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import uuid
from dataclasses import dataclass

from kubestill.errors import KubestillError

LOST = 125
"""Exit code where nothing is known of the container, as Docker's own for "could not start"."""

_IMAGE = r"[A-Za-z0-9][\w.-]*(?::\d+)?(?:/[\w.-]+)*(?::[\w.-]+)?(?:@[\w+.-]+:[0-9a-fA-F]+)?"
_KILLED = (128 + signal.SIGKILL, 128 + signal.SIGTERM)


@dataclass(frozen=True, kw_only=True)
class End:
    """How a container ended."""

    code: int
    """Its own exit code, never 0 where that is unknown."""
    why: str = ""
    """Why it was ended, if it was."""
    from_outside: bool = False
    """Whether it was ended from outside, as the loss of a node ends a pod."""


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
            command: As the cluster would start it.
            image: What to run it in.
            root: Folder of the runs, absolute; the container sees it under the same path.
            environment: Further variables.

        Raises:
            KubestillError: The image's name is none.
        """
        if not re.fullmatch(_IMAGE, image):
            # `--volume=/:/host` would be an option of `docker run`.
            raise KubestillError(
                f"image = {image[:120]!r}: is no name of an image; write it as HOST/NAME:TAG or "
                "HOST/NAME@sha256:..."
            )
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
        return name, [self._docker, "run", *options, *self.arguments, image, *command]

    def removal(self, name: str) -> list[str]:
        """Return the command that ends and removes a container."""
        return [self._docker, "rm", "--force", name]

    def read_end(self, name: str, code: int) -> End:
        """Read how a container ended, and remove it.

        Args:
            name: Of the container.
            code: What the client that watched it ended with.
        """
        try:
            state = json.loads(self._ask("inspect", "--format", "{{json .State}}", name))
        except (OSError, subprocess.CalledProcessError, ValueError):
            # Without a code of its own the client saw it start.
            why = "" if code else "its container is gone"
            return End(code=code or LOST, why=why, from_outside=code in (0, *_KILLED))
        self._ask("rm", "--force", name)
        if state["Running"]:
            return End(code=code or LOST, why="it was still running when Docker's client ended")
        why = "out of memory" if state["OOMKilled"] else state["Error"]
        killed = state["ExitCode"] in _KILLED
        return End(code=state["ExitCode"], why=why, from_outside=killed and not state["OOMKilled"])

    def _ask(self, *arguments: str) -> str:
        done = subprocess.run(
            [self._docker, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout

"""One training process, as a pod would run it, made by a fork server that has torch imported."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.steps.train_teacher import train_teacher

PARAMETERS = {
    "network_args": {"hidden": [48, 48], "dropout": 0.3},
    "epochs": 12,
    "batch_size": 32,
    "experiment": "chaos",
}
SETTINGS = {
    "threads": 1,
    "milestone_every": 0.4,
    "ema_decay": 0.9,
    "checkpoints": {"recovery_seconds": 0.02, "heartbeat_seconds": 0.2},
}


def start(
    root: Path,
    store: str,
    owner: str = "victim",
    parameters: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
) -> BaseProcess:
    """Start a training on ROOT/dataset; it writes ROOT/model and the rest, and ROOT/log."""
    (root / "log").unlink(missing_ok=True)
    context = multiprocessing.get_context("forkserver")
    # Not this module: the fork server of Python 3.11 does not see the tests' folder.
    context.set_forkserver_preload(["kubestill.runtime.steps.train_teacher", "matplotlib.pyplot"])
    arguments = (root, store, owner, parameters or {}, settings or {}, dict(os.environ))
    process = context.Process(target=_train, args=arguments)
    process.start()
    return process


def finish(process: BaseProcess, root: Path) -> str:
    """Wait for the end and return the output; fail unless it went well."""
    process.join(timeout=240)
    output = (root / "log").read_text()
    assert process.exitcode == 0, f"exit code {process.exitcode}\n{output}"
    return output


def kill(process: BaseProcess) -> bool:
    """Send SIGKILL; False where the process had ended by itself."""
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def _train(
    root: Path,
    store: str,
    owner: str,
    parameters: dict[str, Any],
    settings: dict[str, Any],
    environment: dict[str, str],
    log: Path | None = None,
) -> None:
    # The fork server keeps the environment of its first user.
    os.environ.update(environment | {"KUBESTILL_OWNER": owner})
    parameters = {**PARAMETERS, **parameters}
    sys.stdout = sys.stderr = ((log or root) / "log").open("w", buffering=1)
    out: dict[str, Any] = {
        name: LocalArtifact(str(root / name))
        for name in ("model", "ledger", "metrics", "report", "summary")
    }
    train_teacher(
        dataset=LocalArtifact(str(root / "dataset"), metadata={"kind": "dataset"}),
        validation=LocalArtifact(str(root / "validation"), metadata={"kind": "dataset"}),
        checkpoint_uri=store,
        **out,
        **parameters,
        settings=SETTINGS | settings,
    )


if __name__ == "__main__":
    # Under torchrun; its processes share one log, which only rank 0 writes.
    where = Path(sys.argv[1])
    log = where if os.environ.get("RANK", "0") == "0" else where / "others"
    log.mkdir(exist_ok=True)
    _train(where, sys.argv[2], "victim", {}, {}, {}, log=log)

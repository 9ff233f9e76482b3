"""One training process, as a pod would run it, made by a fork server that has torch imported."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.checkpoints.ledger import (
    Checkpoint,
    read_ledger_artifact,
    write_checkpoint_artifact,
)
from kubestill.runtime.steps.finetune_fresh import finetune_fresh
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
    train_teacher(
        dataset=_dataset(root, "dataset"),
        validation=_dataset(root, "validation"),
        checkpoint_uri=store,
        **_outputs(root),
        **parameters,
        settings=SETTINGS | settings,
    )


def _finetune(root: Path, store: str, log: Path) -> None:
    """Go on from the last milestone for a few steps, with some of the same rows replayed."""
    while not (root / "summary").exists():  # rank 0 writes it once the ledger is there
        time.sleep(0.02)
    ledger = read_ledger_artifact(str(root / "ledger"))
    chosen = LocalArtifact(str(log / "checkpoint"), metadata={"kind": "checkpoint"})
    write_checkpoint_artifact(Checkpoint.of(ledger, ledger.milestones[-1]), chosen.path)
    finetune_fresh(
        checkpoint=chosen,
        dataset=_dataset(root, "validation"),
        replay=_dataset(root, "dataset"),
        steps=3,
        checkpoint_uri=store,
        **_outputs(root / "fine"),
        settings={"threads": 1},
    )


def _dataset(root: Path, name: str) -> LocalArtifact:
    return LocalArtifact(str(root / name), metadata={"kind": "dataset"})


def _outputs(root: Path) -> dict[str, Any]:
    names = ("model", "ledger", "metrics", "report", "summary")
    return {name: LocalArtifact(str(root / name)) for name in names}


if __name__ == "__main__":
    # Under torchrun; its processes share one log, which only rank 0 writes.
    where = Path(sys.argv[1])
    log = where if os.environ.get("RANK", "0") == "0" else where / "others"
    log.mkdir(exist_ok=True)
    _train(where, sys.argv[2], "victim", {}, {}, {}, log=log)
    if "then-finetune" in sys.argv:
        _finetune(where, sys.argv[2], log)

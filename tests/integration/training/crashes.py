"""Ends one small training run at every point where it can end, one point after the other.

A run is measured once: each of its steps, each save and each call of the store is an event. Then a
fresh run is ended at event 1, another at event 2 and so on, each in every way there is; each is
started again, and has to end as the undisturbed one did. The processes are real, and so are the
store and the signals; only the pages of the report, which no checkpoint depends on, are left out.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Way = Literal["killed before", "killed after", "terminated before", "answer lost"]

STEP, SAVE = "a step", "a save"
_STORE_CALLS = ("get", "put", "put_parts", "list", "delete")
_CELL_CALLS = ("read", "swap")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of training run."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])


_FINE = {"milestone_every": 4, "milestone_unit": "steps"}
CASES = [
    Case(name="fused, best", settings={**_FINE, "step_path": "fused"}),
    Case(name="autograd, last", settings={**_FINE, "step_path": "autograd", "choose": "last"}),
    Case(name="one milestone", settings={"milestone_every": 12, "milestone_unit": "steps"}),
    Case(
        name="average and dropout",
        settings={**_FINE, "ema_decay": 0.8},
        parameters={"network_args": {"hidden": [8], "dropout": 0.3}},
    ),
    Case(
        name="patience",
        settings={**_FINE, "milestone_every": 2, "patience": 1, "min_delta": 1.0},
    ),
    Case(name="L-BFGS", settings={**_FINE, "finish_steps": 5}, parameters={"mode": "overfit"}),
]


@dataclass(frozen=True, kw_only=True)
class Point:
    """Where and how a run ends."""

    event: int
    """Its number, from 1."""
    way: Way


def count_events(case: Case, root: Path, dataset: Path) -> list[str]:
    """Run a case undisturbed; returns its events in order."""
    code = _attempt_in_a_process(case, root, dataset, None)
    assert code == 0, (root / "log").read_text()
    return json.loads((root / "events.json").read_text())


def points_of(events: list[str]) -> list[Point]:
    """List every point at which a run with these events can end."""
    found: list[Point] = []
    for number, event in enumerate(events, 1):
        ways: tuple[Way, ...] = ("killed before", "terminated before")
        if event not in (STEP, SAVE):
            ways = (*ways, "killed after", "answer lost")
        found += [Point(event=number, way=way) for way in ways]
    return found


def end_and_resume(case: Case, root: Path, dataset: Path, point: Point) -> str:
    """End a run at a point, start it again until it ends by itself; returns what it printed."""
    printed = ""
    for attempt in range(3):
        code = _attempt_in_a_process(case, root, dataset, None if attempt else point)
        printed += (root / "log").read_text()
        if code == 0:
            return printed
        # Where the store's answer was lost before the first step or after the last, the pod fails.
        told = code == 1 and point.way == "answer lost" and "answer got lost" in printed
        assert told or code in (-signal.SIGKILL, -signal.SIGTERM), f"ended with {code}:\n{printed}"
    raise AssertionError(f"not at its end after three attempts:\n{printed}")


def outcome(root: Path) -> dict[str, Any]:
    """Return all that must be equal, whatever happened on the way."""
    record = json.loads((root / "model" / "training.json").read_text())
    (place,) = (root / "store").glob("*/*")
    ledger = json.loads((root / "ledger").read_text())
    return {
        "model": hashlib.sha256((root / "model" / "model.safetensors").read_bytes()).hexdigest(),
        "curves": record["curves"],
        "chosen": record["chosen"],
        "stop": record["stop"],
        "steps": record["steps"],
        "milestones": [
            (entry["step"], entry["metrics"])
            for entry in ledger["entries"]
            if entry["kind"] == "milestone"
        ],
        "place": place.name,
    }


def _attempt_in_a_process(case: Case, root: Path, dataset: Path, point: Point | None) -> int:
    context = multiprocessing.get_context("forkserver")
    # Optimizers of second order import torch's compiler: once here, not in every run.
    context.set_forkserver_preload(["kubestill.runtime.tasks.train_student", "torch._dynamo"])
    process = context.Process(target=_attempt, args=(case, root, dataset, point))
    process.start()
    process.join(timeout=120)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"{case.name}, {point}: hangs:\n{(root / 'log').read_text()}")
    return process.exitcode


def _attempt(case: Case, root: Path, dataset: Path, point: Point | None) -> None:
    os.environ |= {"KUBESTILL_OWNER": "one", "KUBESTILL_CACHE": str(dataset.parent / "cache")}
    root.mkdir(exist_ok=True)
    sys.stdout = sys.stderr = (root / "log").open("w", buffering=1)
    from kubestill.runtime.artifacts import LocalArtifact
    from kubestill.runtime.tasks.train_student import train_student

    events = _Events(point)
    _listen(events)
    outputs: dict[str, Any] = {
        name: LocalArtifact(str(root / name))
        for name in ("model", "ledger", "metrics", "report", "summary")
    }
    given = {"mode": "hard", "steps": 12, "batch_size": 24, "network_args": {"hidden": [8]}}
    checkpoints = {"recovery_seconds": 1e-4, "recovery_auto": False, "heartbeat_seconds": 30}
    validation = dataset.with_name("validation")
    if case.parameters.get("mode") != "overfit":
        given["validation"] = LocalArtifact(str(validation), metadata={"kind": "dataset"})
    train_student(
        dataset=LocalArtifact(str(dataset), metadata={"kind": "dataset"}),
        checkpoint_uri=str(root / "store"),
        **outputs,
        **given | case.parameters,
        settings={"threads": 1, "checkpoints": checkpoints, **case.settings},
    )
    if point is None:
        (root / "events.json").write_text(json.dumps(events.seen))


class _Events:
    """Counts events, and ends the process at one of them."""

    def __init__(self, point: Point | None):
        self.seen: list[str] = []
        self._point = point
        # Saves and heartbeats call the store from threads of their own.
        self._lock = threading.Lock()

    def around(self, event: str, call: Callable[[], Any]) -> Any:
        """Make a call that is an event."""
        from kubestill.errors import StoreUnavailable

        with self._lock:
            self.seen.append(event)
            point = self._point
            here = point is not None and len(self.seen) == point.event
        way = point.way if here and point else ""
        if way == "killed before":
            os.kill(os.getpid(), signal.SIGKILL)
        if way == "terminated before":
            os.kill(os.getpid(), signal.SIGTERM)
        result = call()
        if way == "killed after":
            os.kill(os.getpid(), signal.SIGKILL)
        if way == "answer lost" and event not in (STEP, SAVE):
            raise StoreUnavailable("the answer got lost")
        return result


def _listen(events: _Events) -> None:
    """Make events of steps, saves and the store's calls, from here on in this process."""
    from kubestill.runtime.checkpoints.checkpointer import Checkpointer
    from kubestill.runtime.stores.local import LocalCell, LocalStore
    from kubestill.runtime.training import run

    def listen(owner: type, name: str, event: str) -> None:
        method = getattr(owner, name)

        def called(self: Any, *args: Any, **named: Any) -> Any:
            return events.around(event, lambda: method(self, *args, **named))

        setattr(owner, name, called)

    listen(Checkpointer, "recovery_due", STEP)
    listen(Checkpointer, "save", SAVE)
    for name in _STORE_CALLS:
        listen(LocalStore, name, name)
    for name in _CELL_CALLS:
        listen(LocalCell, name, name)
    run.training_report = lambda *_: ("", "")


def fresh(root: Path) -> Path:
    """Empty a folder for the next run."""
    shutil.rmtree(root, ignore_errors=True)
    return root

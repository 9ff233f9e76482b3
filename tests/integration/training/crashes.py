"""Ends one small training run at every point where it can end, one point after the other.

A run is measured once: each of its steps, each save and each call of the store is an event. Then
a fresh run is ended at the first of them, another at the second and so on, each in every way there
is; each is started again, has to go on from what was committed, and has to end as the undisturbed
one did. The processes are real, and so are the store and the signals. Two things are not as in real
runs: training waits for each save, so that events come in one order, and the pages of the report,
which no checkpoint depends on, are left out.

What is not listed: points within a single call of the store (`tests/integration/stores` has those),
the writing of the outputs after the run is over, and stores other than the disk.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
from collections import Counter
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

    event: str
    """Such as `put manifest.json`."""
    turn: int
    """Which of the events of that name, from 1."""
    way: Way


def list_events(case: Case, root: Path, dataset: Path) -> list[str]:
    """Run a case undisturbed; returns its events in order."""
    code = _attempt_in_a_process(case, root, dataset, None)
    assert code == 0, (root / "log").read_text()
    return json.loads((root / "events.json").read_text())


def points_of(events: list[str]) -> list[Point]:
    """List every point at which a run with these events can end."""
    found: list[Point] = []
    turns: Counter[str] = Counter()
    for event in events:
        turns[event] += 1
        ways: tuple[Way, ...] = ("killed before", "terminated before")
        if event not in (STEP, SAVE):
            ways = (*ways, "killed after", "answer lost")
        found += [Point(event=event, turn=turns[event], way=way) for way in ways]
    return found


def end_and_resume(case: Case, root: Path, dataset: Path, point: Point) -> str:
    """End a run at a point and start it again; returns what it printed.

    Asserts that the point was reached, that the run ended there as told, that what a signal asked
    for was saved, and that the next attempt went on from the newest state there was.
    """
    code = _attempt_in_a_process(case, root, dataset, point)
    printed = (root / "log").read_text()
    assert (root / "reached").exists(), f"{point} was never reached:\n{printed}"
    if point.way == "answer lost":
        # The save is tried again; before the first step or after the last one the pod fails.
        assert code == 0 or (code == 1 and "answer got lost" in printed), printed
    elif point.way == "terminated before":
        # After its last step a run ends by itself.
        assert code in (-signal.SIGTERM, 0), f"ended with {code}:\n{printed}"
    else:
        assert code == -signal.SIGKILL, f"ended with {code}:\n{printed}"
    if code == 0:
        return printed
    committed, finished = _newest_state(root)
    if point.way == "terminated before" and point.event == STEP:
        assert committed == point.turn, f"step {point.turn} was not saved:\n{printed}"
    code = _attempt_in_a_process(case, root, dataset, None)
    log = (root / "log").read_text()
    assert code == 0, f"not at its end after the second attempt:\n{printed}\n--\n{log}"
    if not finished:
        went_on = re.search(r"training .* steps of .* step, from step (\d+)", log)
        assert (int(went_on[1]) if went_on else 0) == committed, f"{committed}:\n{log}"
    return printed + log


def _newest_state(root: Path) -> tuple[int, bool]:
    """Return the step of the newest state in the ledger, and whether the run is finished."""
    ledgers = sorted((root / "store").glob("*/*/ledger.json.*"))
    if not ledgers:
        return 0, False
    ledger = json.loads(ledgers[-1].read_text())
    return max((entry["step"] for entry in ledger["entries"]), default=0), bool(ledger["finished"])


_OF_THE_ATTEMPT = ("attempts", "checkpoint_uri", "checkpoints", "saving", "seconds")
"""What `training.json` says of how it came about, and not of what came about."""


def outcome(root: Path) -> dict[str, Any]:
    """Return all that must be equal, whatever happened on the way."""
    record = json.loads((root / "model" / "training.json").read_text())
    ledger = json.loads((root / "ledger").read_text())
    files = ("model.safetensors", "model.json")
    return {
        **{
            name: hashlib.sha256((root / "model" / name).read_bytes()).hexdigest() for name in files
        },
        "training": {name: one for name, one in record.items() if name not in _OF_THE_ATTEMPT},
        "milestones": [
            {name: entry[name] for name in ("step", "epoch", "examples", "phase", "metrics")}
            for entry in ledger["entries"]
            if entry["kind"] == "milestone"
        ],
        "fingerprint": ledger["fingerprint"],
    }


def _attempt_in_a_process(case: Case, root: Path, dataset: Path, point: Point | None) -> int:
    context = multiprocessing.get_context("forkserver")
    # Optimizers of second order import torch's compiler: once here, not in every run.
    context.set_forkserver_preload(["kubestill.runtime.steps.train_student", "torch._dynamo"])
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
    from kubestill.runtime.base.artifacts import LocalArtifact
    from kubestill.runtime.steps.train_student import train_student

    events = _Events(point, root / "reached")
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

    def __init__(self, point: Point | None, reached: Path):
        self.seen: list[str] = []
        self._point, self._reached = point, reached
        self._turns: Counter[str] = Counter()
        # Saves call the store from a thread of their own.
        self._lock = threading.Lock()

    def around(self, event: str, call: Callable[[], Any]) -> Any:
        """Make a call that is an event."""
        from kubestill.errors import StoreUnavailable

        with self._lock:
            self.seen.append(event)
            self._turns[event] += 1
            point = self._point
            here = point is not None and (event, self._turns[event]) == (point.event, point.turn)
        way = point.way if here and point else ""
        if way:
            self._reached.touch()
        if way == "killed before":
            os.kill(os.getpid(), signal.SIGKILL)
        if way == "terminated before":
            os.kill(os.getpid(), signal.SIGTERM)
        result = call()
        if way == "killed after":
            os.kill(os.getpid(), signal.SIGKILL)
        if way == "answer lost":
            raise StoreUnavailable("the answer got lost")
        return result


def _listen(events: _Events) -> None:
    """Make events of steps, saves and the store's calls, from here on in this process."""
    from kubestill.runtime.checkpoints.checkpointer import Checkpointer
    from kubestill.runtime.steps import train_model
    from kubestill.runtime.stores.local import LocalCell, LocalStore

    def listen(owner: type, name: str, event: Callable[..., str]) -> None:
        method = getattr(owner, name)

        def called(self: Any, *args: Any, **named: Any) -> Any:
            return events.around(event(*args), lambda: method(self, *args, **named))

        setattr(owner, name, called)

    listed, saved = LocalStore.list, Checkpointer.save

    def save(self: Checkpointer, *args: Any, **named: Any) -> None:
        saved(self, *args, **named)
        self.flush()

    LocalStore.list = lambda self, prefix="": iter(list(listed(self, prefix)))
    Checkpointer.save = save
    listen(Checkpointer, "recovery_due", lambda: STEP)
    listen(Checkpointer, "save", lambda *_: SAVE)
    for name in _STORE_CALLS:
        listen(LocalStore, name, lambda key="", *_, name=name: f"{name} {_plain(key)}")
    for name in _CELL_CALLS:
        listen(LocalCell, name, lambda *_, name=name: name)
    train_model.training_report = lambda *_: ("", "")


def _plain(key: str) -> str:
    """Return a key without what differs from run to run: attempts, and names made by chance."""
    return re.sub(r"[0-9a-f]{8,}", "*", key.rpartition("/")[2])


def fresh(root: Path) -> Path:
    """Empty a folder for the next run."""
    shutil.rmtree(root, ignore_errors=True)
    return root

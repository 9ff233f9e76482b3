"""Ends one small training run at every point where it can end, one point after the other.

A run is measured once: each of its steps, each save and each call of the store is an event. Then
a fresh run is ended at the first of them, another at the second and so on, each in every way there
is; each is started again, has to go on from what was committed, and has to end as the undisturbed
one did. The processes are real, and so are the stores and the signals. On a disk the events are the
calls of the store. On `gs://` and `s3://` they are the requests that a call consists of, seen by a
proxy before the server: a call ends before any of them, after it, or with its answer lost. Two
things are not as in real runs: training waits for each save, so that events come in one order, and
the pages of the report, which no checkpoint depends on, are left out.

What is not listed: the writing of the outputs after the run is over.
"""

from __future__ import annotations

import gc
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from emulators import Fault, FaultProxy, Request, S3Server
from kubestill.errors import InvalidInput
from kubestill.runtime.checkpoints.inspection import ledgers
from kubestill.runtime.checkpoints.ledger import Ledger

Way = Literal[
    "killed before",
    "killed after",
    "terminated before",
    "answer lost",
    "refused",
    "gone from then on",
]

STEP, SAVE = "a step", "a save"
_STORE_CALLS = ("get", "put", "put_parts", "list", "delete")
_CELL_CALLS = ("read", "swap")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of training run."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    near: bool = False
    """Whether recovery states go to the node's own disk, and almost none to the store."""


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
    Case(name="near tier", settings={**_FINE, "step_path": "fused"}, near=True),
]


@dataclass(frozen=True, kw_only=True)
class Point:
    """Where and how a run ends."""

    event: str
    """Such as `put manifest.json`."""
    turn: int
    """Which of the events of that name, from 1."""
    way: Way


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What one run trains, and where it keeps what."""

    case: Case
    dataset: Path
    root: Path
    """Its outputs, its log, and its checkpoints where `uri` is empty."""
    uri: str = ""
    """Root of its checkpoints in a cloud."""
    proxy: Requests | None = None
    """What stands before that cloud."""
    process: WarmProcess | None = None
    """Runs its attempts; None within one."""

    @property
    def checkpoint_uri(self) -> str:
        """Root of its checkpoints."""
        return self.uri or str(self.root / "store")

    @property
    def spill(self) -> Path:
        """Where states wait for a store that is gone."""
        return self.root.with_name(f"{self.root.name}-spill")

    @property
    def near(self) -> Path:
        """Stands for the node's own disk."""
        return self.root.with_name(f"{self.root.name}-near")

    def run(self, point: Point | None = None) -> int:
        """Run one attempt, which is to end at a point; returns its exit code."""
        assert self.process
        return self.process.run(self, point)

    def again(self) -> Scene:
        """Return the scene of a run that finds nothing of this one."""
        for folder in (self.root, self.spill, self.near):
            shutil.rmtree(folder, ignore_errors=True)
        uri = f"{self.uri.rpartition('/')[0]}/{uuid.uuid4().hex}" if self.uri else ""
        return replace(self, uri=uri)


class Requests(FaultProxy):
    """A proxy that counts the requests of a process as events, and ends it at one of them."""

    def __init__(self, upstream: str):
        super().__init__(upstream)
        self.begin(None, 0)

    def begin(self, point: Point | None, pid: int) -> None:
        """Watch another process, which is to end at a point."""
        self.seen: list[str] = []
        self.reached = False
        self._point, self._pid = point, pid
        self._turns: Counter[str] = Counter()

    def next_fault(self, request: Request) -> Fault | None:
        """Note the request; end the process there, or answer wrongly, where that is the point."""
        event = _plain_request(request)
        with self._lock:
            self.seen.append(event)
            self._turns[event] += 1
            point = self._point
            if point is None or (event, self._turns[event]) != (point.event, point.turn):
                return None
            self.reached = True
        kill = partial(os.kill, self._pid, signal.SIGKILL)
        if point.way == "killed before":
            kill()
            return Fault("status")
        if point.way == "terminated before":
            os.kill(self._pid, signal.SIGTERM)
            return None
        if point.way == "refused":
            return Fault("status", status=503)
        return Fault("lost", then=kill if point.way == "killed after" else lambda: None)


def _plain_request(request: Request) -> str:
    """Return what a request asks for, without what differs from run to run."""
    found = urlsplit(unquote(request.path))
    about = re.sub(r"&?(uploadId|ifGenerationMatch|generation)=\w+", "", found.query)
    name = f"{found.path.rpartition('/')[2]} {about}"
    name = re.sub(r"[0-9a-f]{8,}", "*", re.sub(r"\S*/", "", name))
    return f"{request.method} {name}".strip()


def list_events(scene: Scene) -> list[str]:
    """Run a case undisturbed; returns its events in order."""
    code = scene.run()
    assert code == 0, (scene.root / "log").read_text()
    if scene.proxy:
        return list(scene.proxy.seen)
    return json.loads((scene.root / "events.json").read_text())


def points_of(events: list[str], last: Way) -> list[Point]:
    """List every point at which a run with these events can end.

    `last` is what else may become of calls of a store: that it is `gone from then on`, or, of a
    request, that it is `refused`.
    """
    found: list[Point] = []
    turns: Counter[str] = Counter()
    for event in events:
        turns[event] += 1
        ways: tuple[Way, ...] = ("killed before", "terminated before")
        if event not in (STEP, SAVE):
            ways = (
                *ways,
                "killed after",
                "answer lost",
                last,
            )
        found += [Point(event=event, turn=turns[event], way=way) for way in ways]
    return found


def end_and_resume(scene: Scene, *points: Point) -> str:
    """End a run at a point, the next attempt at another, and start it again; returns what it said.

    Asserts that each point was reached, that the run ended there as told, that what a signal asked
    for was saved, and that the next attempt went on from the newest state there was.
    """
    said = ""
    for point in points:
        code, printed = end(scene, point)
        said += printed
        if code == 0:
            return said
    committed, finished = _newest_state(scene)
    code = scene.run()
    log = (scene.root / "log").read_text()
    assert code == 0, f"not at its end after the last attempt:\n{said}\n--\n{log}"
    if not finished:
        went_on = re.search(r"training .* steps of .* step, from step (\d[\d,]*)", log)
        assert (int(went_on[1]) if went_on else 0) == committed, f"{committed}:\n{said}\n--\n{log}"
    return said + log


def end(scene: Scene, point: Point) -> tuple[int, str]:
    """End a run at a point, and check that it ended there as told; returns its code and words."""
    code = scene.run(point)
    printed = (scene.root / "log").read_text()
    reached = scene.proxy.reached if scene.proxy else (scene.root / "reached").exists()
    assert reached, f"{point} was never reached:\n{printed}"
    if point.way in ("answer lost", "refused") and scene.proxy:
        assert code == 0, f"one answer was not outlived:\n{printed}"
    elif point.way == "gone from then on":
        # After the last state was saved only the result is missing.
        assert code == 1, f"ended with {code}:\n{printed}"
    elif point.way == "answer lost":
        # The save is tried again; before the first step or after the last one the pod fails.
        assert code == 0 or (code == 1 and "answer got lost" in printed), printed
    elif point.way == "terminated before":
        # After its last step a run ends by itself.
        assert code in (-signal.SIGTERM, 0), f"ended with {code}:\n{printed}"
    else:
        assert code == -signal.SIGKILL, f"ended with {code}:\n{printed}"
    if code and point.way == "terminated before" and point.event == STEP:
        saved = _newest_state(scene)[0]
        assert saved == point.turn, f"step {point.turn} was not saved:\n{printed}"
    return code, printed


def _newest_state(scene: Scene) -> tuple[int, bool]:
    """Return the step of the newest state that can be found, and whether the run is finished.

    A state on the node's own disk counts only where the ledger lists every milestone before it, and
    no later attempt has committed anything, such as a state that came back from the spill folder.
    """
    roots = [scene.checkpoint_uri, *map(str, scene.spill.glob("kubestill-spilled-*/*"))]
    found: list[Ledger] = []
    for root in roots:
        with suppress(InvalidInput):  # nothing is there yet
            found += ledgers(root)
    steps = [entry.step for ledger in found for entry in ledger.entries]
    listed = [entry.step for ledger in found for entry in ledger.milestones]
    attempts = [entry.attempt for ledger in found for entry in ledger.entries]
    for path in scene.near.glob("*/*/*/near.json"):
        record = json.loads(path.read_bytes().partition(b"\n")[2])
        follows = record["after"] is None or record["after"] <= max(listed, default=-1)
        if follows and record["entry"]["attempt"] >= max(attempts, default=0):
            steps.append(record["entry"]["step"])
    return max(steps, default=0), any(ledger.finished for ledger in found)


_OF_THE_ATTEMPT = ("attempts", "checkpoint_uri", "checkpoints", "saving", "seconds")
"""What `training.json` says of how it came about, and not of what came about."""


def outcome(root: Path) -> dict[str, Any]:
    """Return all that must be equal, whatever happened on the way."""
    record = json.loads((root / "model" / "training.json").read_text())
    # Short where the store is to be gone; a result that is adopted was recorded with it.
    del record["settings"]["checkpoints"]["outage_seconds"]
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


@contextmanager
def warm_process(dataset: Path) -> Generator[WarmProcess]:
    """Start the process that every attempt is forked from, and end it at the end."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_fork_attempts, args=(there, dataset))
    process.start()
    there.close()
    try:
        yield WarmProcess(here)
    finally:
        here.close()
        process.join()


class WarmProcess:
    """Forks attempts from a process that has trained before, and so has imported everything.

    Each attempt is still a process with connections of its own, which a signal really ends. What it
    is spared are imports and first calls, which take far longer than the few steps do.
    """

    def __init__(self, calls: Connection):
        self._calls = calls

    def run(self, scene: Scene, point: Point | None) -> int:
        """Run one attempt, which is to end at a point; returns its exit code."""
        names = ("STORAGE_EMULATOR_HOST", "AWS_ENDPOINT_URL", *S3Server.keys) if scene.proxy else ()
        environment = {name: os.environ[name] for name in names if name in os.environ}
        alone = replace(scene, proxy=None, process=None)
        # What the proxy is to end is the proxy's; in the process, it is only counted.
        self._calls.send((alone, None if scene.proxy else point, environment))
        pid = self._calls.recv()
        if scene.proxy:
            scene.proxy.begin(point, pid)
        self._calls.send("go")
        code = self._calls.recv()
        assert code is not None, (
            f"{scene.case.name}, {point}: hangs:\n{(scene.root / 'log').read_text()}"
        )
        return code


def _fork_attempts(calls: Connection, dataset: Path) -> None:
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(None):
        for case in CASES:
            root = Path(folder) / case.name
            root.mkdir()
            _train(Scene(case=case, dataset=dataset, root=root), None)
    gc.freeze()  # or every attempt copies all that it walks over
    while True:
        try:
            scene, point, environment = calls.recv()
        except EOFError:
            return
        started = context.Event()
        process = context.Process(target=_attempt, args=(scene, point, environment, started))
        process.start()
        calls.send(process.pid)
        calls.recv()
        started.set()
        process.join(timeout=120)
        calls.send(process.exitcode)
        if process.exitcode is None:
            process.kill()
            process.join()


def _attempt(scene: Scene, point: Point | None, environment: dict[str, str], started: Any) -> None:
    os.environ |= environment
    started.wait()
    scene.root.mkdir(exist_ok=True)
    sys.stdout = sys.stderr = (scene.root / "log").open("w", buffering=1)
    events = _Events(point, scene.root / "reached")
    _listen(events, scene)
    _train(scene, point)
    if point is None:
        (scene.root / "events.json").write_text(json.dumps(events.seen))


def _train(scene: Scene, point: Point | None) -> None:
    from kubestill.runtime.base.artifacts import LocalArtifact
    from kubestill.runtime.steps import train_model
    from kubestill.runtime.steps.train_student import train_student

    case, root, dataset = scene.case, scene.root, scene.dataset
    os.environ |= {"KUBESTILL_OWNER": "one", "KUBESTILL_CACHE": str(dataset.parent / "cache")}
    train_model.training_report = lambda *_: ("", "")
    outputs: dict[str, Any] = {
        name: LocalArtifact(str(root / name))
        for name in ("model", "ledger", "metrics", "report", "summary")
    }
    given = {"mode": "hard", "steps": 12, "batch_size": 24, "network_args": {"hidden": [8]}}
    checkpoints = {
        "recovery_seconds": 1e-4,
        "recovery_auto": False,
        "heartbeat_seconds": 300,
        "spill_folder": str(scene.spill),
    }
    if case.near:
        checkpoints |= {"recovery_seconds": 3600, "near": str(scene.near), "near_seconds": 1e-4}
    if point and point.way == "gone from then on":
        checkpoints["outage_seconds"] = 0.6
    validation = dataset.with_name("validation")
    if case.parameters.get("mode") != "overfit":
        given["validation"] = LocalArtifact(str(validation), metadata={"kind": "dataset"})
    train_student(
        dataset=LocalArtifact(str(dataset), metadata={"kind": "dataset"}),
        checkpoint_uri=scene.checkpoint_uri,
        **outputs,
        **given | case.parameters,
        settings={"threads": 1, "checkpoints": checkpoints, **case.settings},
    )


class _Events:
    """Counts events, and ends the process at one of them."""

    def __init__(self, point: Point | None, reached: Path):
        self.seen: list[str] = []
        self._point, self._reached = point, reached
        self._turns: Counter[str] = Counter()
        self.ends_gone = point is not None and point.way == "gone from then on"
        self.gone = False
        """Whether the store answers nothing any more."""
        # Saves call the store from a thread of their own.
        self._lock = threading.Lock()

    def around(self, event: str, call: Callable[[], Any], *, stored: bool = False) -> Any:
        """Make a call that is an event; `stored`: one of the store that may be gone."""
        from kubestill.errors import StoreUnavailable

        with self._lock:
            self.seen.append(event)
            self._turns[event] += 1
            point = self._point
            here = point is not None and (event, self._turns[event]) == (point.event, point.turn)
            self.gone = self.gone or (here and self.ends_gone)
        way = point.way if here and point else ""
        if way:
            self._reached.touch()
        if way == "killed before":
            os.kill(os.getpid(), signal.SIGKILL)
        if way == "terminated before":
            os.kill(os.getpid(), signal.SIGTERM)
        if self.gone and stored:
            raise StoreUnavailable("gone")
        result = call()
        if way == "killed after":
            os.kill(os.getpid(), signal.SIGKILL)
        if way == "answer lost":
            raise StoreUnavailable("the answer got lost")
        return result


def _listen(events: _Events, scene: Scene) -> None:
    """Make events of steps, saves and the store's calls, from here on in this process."""
    from kubestill.runtime.checkpoints.checkpointer import Checkpointer
    from kubestill.runtime.stores.local import LocalCell, LocalStore

    def listen(owner: type, name: str, event: Callable[..., str]) -> None:
        method = getattr(owner, name)

        def called(self: Any, *args: Any, **named: Any) -> Any:
            root = str(getattr(self, "_root", ""))
            places = {"spilled ": scene.spill, "near ": scene.near}
            of = [name for name, folder in places.items() if root.startswith(str(folder))]
            return events.around(
                "".join(of) + event(*args),
                lambda: method(self, *args, **named),
                stored=root.startswith(scene.checkpoint_uri),
            )

        setattr(owner, name, called)

    listed, saved = LocalStore.list, Checkpointer.save

    def save(self: Checkpointer, *args: Any, **named: Any) -> None:
        saved(self, *args, **named)
        if not events.ends_gone:
            self.flush()
        # One whose store is gone trains on, as real ones do.
        while self._running().busy and not events.gone:  # pyright: ignore
            time.sleep(0.001)
        if self._near is not None:  # pyright: ignore
            self._near.wait()  # pyright: ignore

    LocalStore.list = lambda self, prefix="": iter(list(listed(self, prefix)))
    Checkpointer.save = save
    listen(Checkpointer, "recovery_due", lambda: STEP)
    listen(Checkpointer, "save", lambda *_: SAVE)
    for name in _STORE_CALLS:
        listen(LocalStore, name, lambda key="", *_, name=name: f"{name} {_plain(key)}")
    for name in _CELL_CALLS:
        listen(LocalCell, name, lambda *_, name=name: name)


def _plain(key: str) -> str:
    """Return a key without what differs from run to run: attempts, and names made by chance."""
    return re.sub(r"[0-9a-f]{8,}", "*", key.rpartition("/")[2])

"""Fork steps from a process whose imports are done.

A run that only judges works for a second and would import for ten: each step is a process of its
own, and torch alone takes three seconds. So `kubestill run` starts servers at once, which import
while kfp is imported here:

    kubestill run
      └─ server: pandas and pyarrow        forks steps that need no more
           └─ server: torch as well        forks steps that train, label and judge
                └─ server: the same        forks a step that runs beside such a one

A step whose environment is not the servers', or that finds them busy or dead, starts as a process
of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, NoReturn

from kubestill import step
from kubestill.supervision import die_with, show_name

PIPELINES = ("continuous-retraining", "distillation", "distillation-sweep", "surrogate")
"""Pipelines whose steps are these."""
LIGHT = (
    "collect_fresh",
    "gather_shards",
    "generate_synthetic",
    "import_dataset",
    "open_champion",
    "plan_shards",
    "record_outcome",
)
HEAVY = (
    "certify_surrogate",
    "check_distillation",
    "choose_student",
    "continuous_eval",
    "finetune_fresh",
    "import_model",
    "label_with_teacher",
    "overfit_batch",
    "quantise_model",
    "promote_model",
    "select_checkpoint",
    "train_student",
    "train_teacher",
)
_FOR_REPORTS = ("matplotlib.backends.backend_svg", "matplotlib.figure", "jinja2")
"""What steps import when they get to their reports."""
_STEP = ("-m", "kubestill.step", step.EXECUTOR)
_REQUEST_BYTES = 1 << 20


class Forked:
    """A step that a server has forked: what `subprocess.Popen` is to a step that was started."""

    def __init__(self, pid: int, stdout: IO[str], channel: Channel):
        self.pid = pid
        self.stdout: IO[str] | None = stdout
        self.returncode: int | Any = None
        self._channel = channel

    def wait(self) -> int:
        """Return its exit code, negative for a signal; that of SIGKILL where the server is gone."""
        if self.returncode is None:
            told = self._channel.receive()
            self.returncode = told["code"] if told else -signal.SIGKILL
            self._channel.free.release()
        return self.returncode

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.stdout is not None
        self.stdout.close()
        self.wait()


class Channel:
    """A line to one of the servers; carries one step at a time."""

    def __init__(self, end: socket.socket):
        self._end = end
        self.free = threading.Lock()

    def ask(self, request: Mapping[str, Any], output: int) -> int:
        """Have a step forked that prints to the file `output`; returns its id, 0 where none is."""
        try:
            socket.send_fds(self._end, [json.dumps(request).encode()], [output])
        except OSError:
            return 0
        told = self.receive()
        return told.get("pid", 0) if told else 0

    def receive(self) -> dict[str, int] | None:
        """Return what the server says next; None where it is gone."""
        try:
            said = self._end.recv(_REQUEST_BYTES)
        except OSError:
            return None
        return json.loads(said) if said else None

    def close(self) -> None:
        """Say that no further step comes."""
        self._end.close()


class ForkServer:
    """The servers, and the lines to them."""

    def __init__(self) -> None:
        self.environment = dict(os.environ)
        # Packets, so that requests and answers have ends.
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3)]
        light, *heavy = (Channel(ours) for ours, _ in pairs)
        self._channels: dict[str, list[Channel]] = {
            **dict.fromkeys(LIGHT, [light]),
            **dict.fromkeys(HEAVY, heavy),
        }
        theirs = [end.fileno() for _, end in pairs]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, *map(str, theirs)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**self.environment, "PYTHONUNBUFFERED": "1"},
            pass_fds=theirs,
            start_new_session=True,
        )
        for _, end in pairs:
            end.close()

    def fork(self, command: Sequence[str], environment: Mapping[str, str]) -> Forked | None:
        """Fork a step with its output in a pipe; None where it has to be started instead."""
        argv = list(command[3:])
        if tuple(command[1:4]) != _STEP or argv[-2:-1] != ["--function_to_execute"]:
            return None
        if _for_imports(environment) != _for_imports(self.environment):
            return None
        channels = self._channels.get(argv[-1], [])
        channel = next((one for one in channels if one.free.acquire(blocking=False)), None)
        if channel is None:
            return None
        receiver, sender = os.pipe()
        try:
            pid = channel.ask({"argv": argv, "environment": dict(environment)}, sender)
        finally:
            os.close(sender)
        if not pid:
            os.close(receiver)
            channel.free.release()
            return None
        stdout = open(receiver, errors="backslashreplace", buffering=1)  # noqa: SIM115
        return Forked(pid, stdout, channel)

    def close(self) -> None:
        """End the server and what it imports for; steps are in sessions of their own."""
        for channel in {one for channels in self._channels.values() for one in channels}:
            channel.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextlib.contextmanager
def serve_while(pipeline: str) -> Iterator[ForkServer | None]:
    """Have a server during the block, where the steps of this pipeline gain by it."""
    # Elsewhere, libraries that were imported do not survive a fork.
    if sys.platform != "linux" or pipeline.replace("_", "-") not in PIPELINES:
        yield None
        return
    server = ForkServer()
    try:
        yield server
    finally:
        server.close()


def _for_imports(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that may matter to what is imported."""
    later = ("PATH", "PYTHONUNBUFFERED", "_KFP_RUNTIME")
    return {
        name: value
        for name, value in environment.items()
        if name not in later and not name.startswith("KUBESTILL_")
    }


def _serve(end: socket.socket) -> None:
    """Fork one step after the other, until nobody asks any more."""
    while True:
        request, descriptors, _, _ = socket.recv_fds(end, _REQUEST_BYTES, 1)
        if not request:
            return
        child = os.fork()
        if not child:
            # Said here, once it has a session: who hears of it may end it as a session.
            os.setsid()
            end.send(json.dumps({"pid": os.getpid()}).encode())
            end.close()
            _run(json.loads(request), descriptors[0])
        os.close(descriptors[0])
        _, status = os.waitpid(child, 0)
        end.send(json.dumps({"code": os.waitstatus_to_exitcode(status)}).encode())


def _run(request: Mapping[str, Any], output: int) -> NoReturn:
    """Be the step."""
    code = 1
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        os.close(output)
        os.environ.clear()
        os.environ.update(request["environment"])
        show_name(request["argv"][-1])  # its command line is the server's
        code = step.main(request["argv"])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _modules(components: Sequence[str]) -> list[str]:
    """Return what these steps import."""
    folders = ("kubestill.components.{}.component", "kubestill.runtime.steps.{}")
    return [folder.format(name) for name in components for folder in folders]


def main(*lines: int) -> None:
    """Import, and serve at one end of the lines; forks the other servers on the way."""
    ends = [socket.socket(fileno=number) for number in lines]
    # The first is ready at once and stays small; the others are forked as soon as they can be.
    for modules in (["kfp.dsl.executor", *_modules(LIGHT)], [*_modules(HEAVY), *_FOR_REPORTS], []):
        for name in modules:
            importlib.import_module(name)
        own = ends.pop(0)
        parent = os.getpid()
        if not ends or os.fork():
            for other in ends:
                other.close()
            return _serve(own)
        die_with(parent)
        own.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

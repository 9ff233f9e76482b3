"""Start the processes of steps, and end them with the run, however that ends.

Each step gets a session of its own, so that all that it starts can be ended together, and a
terminal's Ctrl-C does not reach it twice. A watchman, in one more session, reads from a pipe whose
other end this process holds: when the pipe closes, though this process was killed, it ends what
still runs. (The kernel's parent-death signal reaches children only, not theirs, and no container.)
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType, TracebackType
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from kubestill.forkserver import Forked, ForkServer

GRACE_SECONDS = 10.0
"""For a step that is asked to end, such as to save a checkpoint."""


class Processes:
    """The processes of one run's steps.

    Args:
        server: Forks those that it can; None starts all of them.
    """

    def __init__(self, server: ForkServer | None = None) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._running: dict[int, tuple[str, ...]] = {}
        self._watchman: subprocess.Popen[str] | None = None
        self.interrupted = False
        """Whether the run was asked to end."""

    def __enter__(self) -> Processes:
        self._watchman = subprocess.Popen(
            [sys.executable, "-S", "-I", __file__],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._watchman is not None
        assert self._watchman.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._watchman.stdin.close()
        self._watchman.wait()

    @contextlib.contextmanager
    def start(
        self, command: Sequence[str], environment: Mapping[str, str], *, undo: Sequence[str] = ()
    ) -> Iterator[subprocess.Popen[str] | Forked]:
        """Start one with its output in a pipe; wait for it at the end of the block.

        Args:
            command: What to run.
            environment: All of its variables.
            undo: Command that ends what this one leaves running elsewhere, such as a container.
        """
        with self._lock:
            if self.interrupted:
                raise KeyboardInterrupt
            process = self._server.fork(command, environment) if self._server else None
            process = process or subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
                errors="backslashreplace",
                bufsize=1,
                env=dict(environment),
                start_new_session=True,
            )
            self._running[process.pid] = tuple(undo)
            self._tell("started", process.pid, undo)
        try:
            with process:
                yield process
        finally:
            # An interrupted `with` does not wait.
            process.wait()
            with self._lock:
                del self._running[process.pid]
                self._tell("ended", process.pid, ())

    def interrupt(self) -> None:
        """Ask all to end, and make those end that do not; start no more."""
        self.interrupted = True
        running = dict(self._running)
        for group in running:
            _send(group, signal.SIGTERM)
        timer = threading.Timer(GRACE_SECONDS, self._finish, args=[running])
        timer.daemon = True
        timer.start()

    def _finish(self, running: Mapping[int, tuple[str, ...]]) -> None:
        for group, undo in running.items():
            if group in self._running:
                _end(group, undo)

    def _tell(self, what: str, group: int, undo: Sequence[str]) -> None:
        assert self._watchman is not None
        assert self._watchman.stdin is not None
        # Without its watchman a run goes on.
        with contextlib.suppress(BrokenPipeError):
            self._watchman.stdin.write(json.dumps([what, group, list(undo)]) + "\n")
            self._watchman.stdin.flush()


@contextlib.contextmanager
def ending_on_signals(processes: Processes) -> Iterator[None]:
    """Pass Ctrl-C and SIGTERM on to the steps, then leave by KeyboardInterrupt."""
    # Not above: the watchman runs this file without any packages.
    from kubestill.terminal import interrupt

    def stop(number: int, frame: FrameType | None) -> None:
        processes.interrupt()
        interrupt(KeyboardInterrupt())

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _send(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _end(group: int, undo: Sequence[str]) -> None:
    _send(group, signal.SIGKILL)
    if undo:
        subprocess.run(undo, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _watch(stream: IO[str]) -> None:
    """Be the watchman: end what still runs when the stream does."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    running: dict[int, list[str]] = {}
    for line in stream:
        what, group, undo = json.loads(line)
        if what == "started":
            running[group] = undo
        else:
            running.pop(group, None)
    for group in running:
        _send(group, signal.SIGTERM)
    if running:
        import time

        time.sleep(1)
    for group, undo in running.items():
        _end(group, undo)


if __name__ == "__main__":
    _watch(sys.stdin)

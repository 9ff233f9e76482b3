"""Run a step in a process of its own, and start it again where another try may cure what ended it.

Stock Kubeflow 2.17 does not retry a step whose process was killed in a living pod, and a retry that
it does make costs a pod. So each step runs in a child of a parent that imports nothing heavy:

    parent (this module, 20 MB)            what Kubeflow's launcher started
      └─ child (kfp, torch, the step)      forked; a fresh copy of the slim parent at each try

How the child's end is read:

    ended by                                      then
    exit 0                                        done
    SIGKILL, SIGSEGV, SIGBUS, SIGABRT, ...        again, up to `restarts` times
    this parent, because it hangs (`heartbeat`)   again, up to `restarts` times
    an exception that may pass (`may_pass`)       again, up to `restarts` times
    any other exception, or SystemExit            failed: the same input fails the same way
    SIGTERM or SIGINT, sent to either             stopped: somebody wants the step to end

The parent forwards SIGTERM and SIGINT and waits: a training run saves a checkpoint first. If the
parent dies, the kernel kills the child. Only the standard library is imported here.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import json
import os
import re
import select
import shutil
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, NoReturn

from kubestill.errors import ClusterError, InvalidInput, KubestillError, StoreUnavailable
from kubestill.heartbeat import Pulse, Watch

TRAINJOB_VARIABLE = "KUBESTILL_TRAINJOB"
"""Environment variable: name of the TrainJob that this process is a pod of."""
FAILED_FOR_GOOD = 65
"""Exit status of such a pod that another start would not help: the TrainJob ends at once."""

RESTARTS = "KUBESTILL_RESTARTS"
"""Environment variable: how often a step is started again within its pod; 0 turns that off."""
_LAST_TRY = "KUBESTILL_LAST_TRY"

_DEFAULT_RESTARTS = 3
_RESUMABLE = frozenset({"train_teacher", "train_student", "finetune_fresh", "promote_model"})
_STOPPING = (signal.SIGTERM, signal.SIGINT)
_FIRST_PAUSE_SECONDS = 1.0
_PAUSE_GROWTH = 4
_LOOK_SECONDS = 1.0
"""Between two looks at whether the child gets on."""


@dataclass(frozen=True, kw_only=True)
class Try:
    """One child process that worked on the step."""

    started: float
    """Seconds since 1970."""
    seconds: float
    """How long it lived."""
    ended: str
    """What ended it, in words; empty where it succeeded."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How the step ended, after its last try."""

    code: int
    """Exit status for this process: 0, the child's own, or 128 + the signal that killed it."""
    error: str = ""
    """Class of the exception that ended it, such as `InvalidInput`; a signal's name, such as
    `SIGKILL`; empty where it succeeded."""
    message: str = ""
    """What the exception said; or what is known about the signal."""
    may_pass: bool = False
    """Whether another try may cure it."""
    stopped: bool = False
    """Whether somebody asked it to end, by SIGTERM or SIGINT."""
    tries: tuple[Try, ...] = ()
    """All of this process's, the last one included."""

    @property
    def words(self) -> str:
        """What ended it, in one line; empty where it succeeded."""
        if self.error.startswith("SIG"):
            return self.message
        first = self.message.strip().partition("\n")[0]
        return f"{self.error}: {first}".removesuffix(": ") if self.error else ""


def allowed_restarts(component: str, environment: Mapping[str, str] = os.environ) -> int:
    """Return how often a component's process may be started again within one pod.

    Training resumes from its last checkpoint, so that each try gets further: 3 times, or
    `$KUBESTILL_RESTARTS`. Any other step starts over, once at most. That is safe, because every
    component may run twice and a retried pod does the same; but what kills it twice at the same
    place would kill it again.
    """
    text = environment.get(RESTARTS, "").strip()
    allowed = _DEFAULT_RESTARTS
    if re.fullmatch("[0-9]{1,6}", text):
        allowed = int(text)
    elif text:
        print(f"WARNING: {RESTARTS} = {text!r}: give a whole number, 0 for none; {allowed} is used")
    return allowed if component in _RESUMABLE else min(1, allowed)


def supervise(
    run: Callable[[], object],
    *,
    restarts: int,
    forget: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = print,
) -> Ended:
    """Call `run` in a child process, again as often as allowed and useful; return how it ended.

    Call it from the main thread of a process that has started no other thread and imported nothing
    heavy: each try is a fork of it. `run` never returns in the parent; the child leaves by itself,
    having printed its traceback, run what was registered with `atexit`, and flushed.

    Args:
        run: The step. Success is to return; `SystemExit` keeps its code.
        restarts: How often the child may be started again (`allowed_restarts`).
        forget: Called in the parent before each restart: removes what the dead try left in the
            places of its outputs (`forget_outputs`).
        say: Takes what happens, one line each.
    """
    tries: list[Try] = []
    with _Child.of_this_process() as child:
        while True:
            started = time.time()
            ended = child.call(run, tries[-1] if tries else None)
            tries.append(Try(started=started, seconds=time.time() - started, ended=ended.words))
            ended = replace(ended, stopped=ended.stopped or child.asked_to_stop, tries=tuple(tries))
            if not ended.code or ended.stopped or not ended.may_pass:
                return ended
            if len(tries) > restarts:
                if restarts:
                    say(f"{ended.words}: the last of {len(tries)} tries in this pod")
                return ended
            pause = _FIRST_PAUSE_SECONDS * _PAUSE_GROWTH ** (len(tries) - 1)
            say(
                f"{ended.words}: starting the step again in {pause:.0f} s "
                f"(restart {len(tries)} of {restarts} in this pod)"
            )
            sys.stdout.flush()
            try:
                forget()
            except OSError as error:
                say(f"WARNING: not started again: its outputs cannot be cleared: {error}")
                return ended
            if not child.wait_for(pause):
                return replace(ended, stopped=True)


def last_try(environment: Mapping[str, str] = os.environ) -> Try | None:
    """Return the try before this one, where this process is a child that was started again."""
    text = environment.get(_LAST_TRY, "")
    return Try(**json.loads(text)) if text else None


def forget_outputs(executor_input: Mapping[str, Any]) -> None:
    """Remove what a dead try wrote to the step's outputs, so that the next sees a fresh pod's disk.

    Checkpoints stay: they lie beside the ledger artifact, or below `checkpoint_uri`. So does
    `executor-logs`, which Kubeflow's launcher is writing.

    Args:
        executor_input: What Kubeflow hands to the step.

    Raises:
        OSError: Something cannot be removed.
    """
    outputs: dict[str, Any] = executor_input["outputs"]
    places = [outputs.get("outputFile", "")]
    places += [given["outputFile"] for given in outputs.get("parameters", {}).values()]
    for name, given in outputs.get("artifacts", {}).items():
        if name != "executor-logs":
            places += [local_path(artifact["uri"]) for artifact in given.get("artifacts", [])]
    for place in filter(None, places):
        if os.path.isdir(place) and not os.path.islink(place):
            shutil.rmtree(place)
        else:
            with suppress(FileNotFoundError):
                os.remove(place)


def may_pass(error: BaseException) -> bool:
    """Say whether another try, in a new process and later, may do without this error.

    The store did not answer, a device or the network between devices failed, or a device is out of
    memory: yes. Bad input, divergence, a newer attempt, a bug: no. An error that was translated
    counts as what caused it: `InvalidInput` raised from `StoreUnavailable` may pass.
    """
    cause: BaseException | None = error
    while cause is not None:
        verdict = _verdict(cause)
        if verdict is not None:
            return verdict
        cause = cause.__cause__
    return False


_OF_TORCH = ("DistBackendError", "DistNetworkError", "DistStoreError", "OutOfMemoryError")
"""Classes by name: importing torch would make every fork of the parent expensive."""
_OF_THE_NETWORK = (errno.EIO, errno.ESTALE, errno.ENETUNREACH, errno.EHOSTUNREACH)
_OF_THE_MACHINE = re.compile(
    r"uncorrectable (ECC|NVLink) error|unspecified launch failure|launch timed out"
    r"|hardware (error|failure)"
    r"|illegal memory access|is/are busy or unavailable|(device|GPU) is lost|fallen off the bus"
    r"|CUDA error: (unknown|initialization) error|NCCL (error|operation|communicator)"
    r"|nccl(Unhandled|System|Remote|Internal)\w*Error"
    r"|CU(BLAS|DNN)_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR)"
    r"|Connection (closed by|reset by) peer|killed by signal"
)
"""Words of CUDA, NCCL, gloo and torch's loaders by which a RuntimeError may pass. An illegal access
may also be a bug in a kernel; failing hardware looks the same, and there are few tries."""


def _verdict(error: BaseException) -> bool | None:
    """Judge one error by itself; None where what caused it decides."""
    if isinstance(error, StoreUnavailable | ConnectionError | TimeoutError):
        return True
    if isinstance(error, ClusterError):
        return error.status == 429 or error.status >= 500
    if isinstance(error, InvalidInput):
        return None
    if isinstance(error, KubestillError):
        return False
    if isinstance(error, OSError) and error.errno in _OF_THE_NETWORK:
        return True
    if any(kind.__name__ in _OF_TORCH for kind in type(error).__mro__):
        return True
    if isinstance(error, RuntimeError) and _OF_THE_MACHINE.search(str(error)):
        return True
    return None


def local_path(uri: str) -> str:
    """Return where Kubeflow's launcher and its local runner keep an artifact."""
    scheme, separator, rest = uri.partition("://")
    return f"/{'gcs' if scheme == 'gs' else scheme}/{rest}" if separator else uri


class _Child:
    """The process that works, one after the other; signals to stop go to it."""

    def __init__(self) -> None:
        self._pid = 0
        self.asked_to_stop = False

    @classmethod
    @contextmanager
    def of_this_process(cls) -> Iterator[_Child]:
        """Forward signals until the end of the block."""
        child = cls()
        before = {number: signal.signal(number, child._forward) for number in _STOPPING}
        try:
            yield child
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def call(self, run: Callable[[], object], last: Try | None) -> Ended:
        """Fork, call `run` there, and return how the child ended."""
        parent, kills = os.getpid(), _kills_for_memory()
        sys.stdout.flush()
        sys.stderr.flush()
        receiver, sender = os.pipe()
        pulse = Pulse.shared()
        # A signal between the fork and the next line would reach a child that nobody knows yet, or
        # run this object's handler in the child.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        if self.asked_to_stop:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
            os.close(receiver)
            os.close(sender)
            return Ended(
                code=128 + signal.SIGTERM,
                error="SIGTERM",
                message="asked to stop before it began",
                stopped=True,
            )
        self._pid = os.fork()
        if not self._pid:
            os.close(receiver)
            Pulse.current = pulse
            _work(run, parent, sender, last)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
        os.close(sender)
        try:
            hang = _await_end(self._pid, Watch(pulse))
            # Its number stays its own until it is reaped: a signal in between reaches nobody else.
            os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
            group, self._pid = self._pid, 0
            _, status = os.waitpid(group, 0)
            # What it left behind, such as loaders of data, holds memory that the next try needs.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
            # Not to the end of the file: such a process may hold it open for a moment still.
            os.set_blocking(receiver, False)
            told = b""
            with suppress(BlockingIOError):
                told = os.read(receiver, _MESSAGE_BYTES)
        finally:
            os.close(receiver)
        ended = _read_end(status, told, kills)
        return replace(ended, message=hang) if hang and ended.may_pass else ended

    def wait_for(self, seconds: float) -> bool:
        """Wait; returns False at once when asked to stop."""
        until = time.monotonic() + seconds
        while not self.asked_to_stop and time.monotonic() < until:
            time.sleep(0.1)
        return not self.asked_to_stop

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.asked_to_stop = True
        if self._pid:
            with suppress(ProcessLookupError):
                os.kill(self._pid, number)


def _await_end(pid: int, watch: Watch) -> str:
    """Wait until a child ends, or hangs and is killed; return how it hung, if it did."""
    try:
        handle = os.pidfd_open(pid)
    except (AttributeError, OSError):  # not on this system: nobody watches it
        return ""
    end = select.poll()
    end.register(handle, select.POLLIN)
    try:
        while not end.poll(1e3 * _LOOK_SECONDS):
            if hang := watch.find_hang():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                return hang
        return ""
    finally:
        os.close(handle)


_MESSAGE_BYTES = 32768
"""Less than a pipe takes without a reader."""
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_CGROUP = "/sys/fs/cgroup"


def _work(run: Callable[[], object], parent: int, sender: int, last: Try | None) -> NoReturn:
    """Be the child: call `run` and leave."""
    # A group of its own: what reaches the parent's whole group, such as Ctrl-C, comes once.
    os.setpgid(0, 0)
    die_with(parent)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    _disown_exit_functions()
    os.environ.pop(_LAST_TRY, None)
    if last:
        os.environ[_LAST_TRY] = json.dumps(vars(last))
    code = 1
    try:
        run()
        code = 0
    except SystemExit as error:
        code = _exit_code(error)
        if isinstance(error.code, str):
            _tell(sender, error)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException as error:
        # From the step's own frames on.
        own = error.__traceback__.tb_next if error.__traceback__ else None
        traceback.print_exception(type(error), error, own)
        _tell(sender, error)
    _leave(code)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies; only Linux can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def show_name(name: str) -> None:
    """Have `ps` and `top` show this process by a name, of which Linux keeps 15 characters."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode())


def _disown_exit_functions() -> None:
    """Leave what the parent does at its end, such as to remove temporary folders, to the parent."""
    atexit._clear()  # pyright: ignore[reportAttributeAccessIssue]
    inherited: dict[weakref.finalize[..., Any], object] = getattr(weakref.finalize, "_registry", {})
    for cleanup in inherited:
        cleanup.atexit = False
    # `finalize` registers itself once in the life of a process, which was the parent's.
    atexit.register(getattr(weakref.finalize, "_exitfunc", lambda: None))


def _exit_code(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return int(error.code or 0)
    print(error.code, file=sys.stderr)
    return 1


def _tell(sender: int, error: BaseException) -> None:
    said = {"error": type(error).__name__, "message": str(error), "may_pass": may_pass(error)}
    # JSON takes up to twelve bytes for one character.
    said["message"] = said["message"][: _MESSAGE_BYTES // 16]
    os.write(sender, json.dumps(said).encode())


def _leave(code: int) -> NoReturn:
    """End as the interpreter does, but without returning to what called `supervise`."""
    try:
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _read_end(status: int, told: bytes, kills: int) -> Ended:
    """Say how a child ended, from its status and from what it told."""
    code = os.waitstatus_to_exitcode(status)
    if told:  # whatever happened to it afterwards
        return Ended(code=code if code > 0 else 1, **json.loads(told))
    if code >= 0:
        return Ended(code=code, error="SystemExit" * bool(code), message=str(code) * bool(code))
    name = _name_of(-code)
    return Ended(
        code=128 - code,
        error=name,
        message=f"killed by {name}{_guess(-code, kills)}",
        may_pass=-code not in _STOPPING,
        stopped=-code in _STOPPING,
    )


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"SIG{number}"


def _guess(number: int, kills: int) -> str:
    """Say why a process may have been killed."""
    if number != signal.SIGKILL:
        return ""
    if _kills_for_memory() > kills:
        return f" because the pod is out of memory{_limit()}; raise its memory"
    return " (out of memory, or by hand)"


def _kills_for_memory() -> int:
    """Count the processes of this container that the kernel has killed for lack of memory."""
    told = _of_cgroup("memory.events", "memory.oom_control")
    found = re.search(r"^oom_kill (\d+)", told, re.MULTILINE)
    return int(found[1]) if found else 0


def _limit() -> str:
    text = _of_cgroup("memory.max", "memory.limit_in_bytes").strip()
    return f", of which it has {int(text) / 2**30:.3g} GiB" if text.isdigit() else ""


def _of_cgroup(name: str, first: str) -> str:
    """Read a file of this container's control group, by its name in version 2 or in version 1.

    Version 1 is where Kubernetes leaves the parent alive. Empty where there is neither.
    """
    for path in (name, os.path.join("memory", first)):
        try:
            with open(os.path.join(_CGROUP, path), encoding="ascii") as file:
                return file.read()
        except OSError:
            continue
    return ""

"""Run a step in a process of its own, and start it again where another try may cure what ended it.

Stock Kubeflow 2.17 does not retry a step whose process was killed in a living pod, and a retry that
it does make costs a pod. So each step runs in a child of a parent that imports nothing heavy:

    parent (this module, 20 MB)            what Kubeflow's launcher started
      └─ child (kfp, torch, the step)      forked; a fresh copy of the slim parent at each try

How the child's end is read:

    ended by                                      then
    exit 0                                        done
    SIGKILL, SIGSEGV, SIGBUS, SIGABRT, ...        again, up to `restarts` times
    an exception that may pass (`may_pass`)       again, up to `restarts` times
    any other exception, or SystemExit            failed: the same input fails the same way
    SIGTERM or SIGINT, sent to either             stopped: somebody wants the step to end

The parent forwards SIGTERM and SIGINT once and waits: a training run saves a checkpoint first. If the
parent dies, the kernel kills the child. Only the standard library is imported here.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

from kubestill.errors import ClusterError, InvalidInput, KubestillError, StoreUnavailable

__all__ = ["LAST_END", "RESTARTS", "Ended", "Try", "allowed_restarts", "forget_outputs"]
__all__ += ["may_pass", "supervise"]

RESTARTS = "KUBESTILL_RESTARTS"
"""Environment variable: how often a step is started again within its pod; 0 turns that off."""
LAST_END = "KUBESTILL_LAST_END"
"""Environment variable that tells a child how the try before it ended; absent in the first."""

_DEFAULT_RESTARTS = 3
_RESUMABLE = frozenset({"train_teacher", "train_student", "finetune_fresh"})
_STOPPING = (signal.SIGTERM, signal.SIGINT)
_FIRST_PAUSE_SECONDS = 1.0
_PAUSE_GROWTH = 4


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


def allowed_restarts(component: str, environment: Mapping[str, str] = os.environ) -> int:
    """Return how often a component's process may be started again within one pod.

    Training resumes from its last checkpoint, so each try gets further: 3, or `$KUBESTILL_RESTARTS`.
    Any other step starts over. That is safe, because every component may run twice, and it is what a
    retried pod does; but what kills it twice at the same place kills it again: 1 at most.
    """
    text = environment.get(RESTARTS, "").strip()
    if text and not text.isascii() or text and not text.isdigit():
        print(f"WARNING: {RESTARTS} = {text!r} is no whole number of 0 or more: 3 is used")
        text = ""
    allowed = int(text) if text else _DEFAULT_RESTARTS
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
    raise NotImplementedError


def forget_outputs(executor_input: Mapping[str, Any]) -> None:
    """Remove what a dead try wrote to the step's outputs, so that the next sees a fresh pod's disk.

    Checkpoints stay: they lie beside the ledger artifact, or below `checkpoint_uri`. So does
    `executor-logs`, which Kubeflow's launcher is writing.

    Args:
        executor_input: What Kubeflow hands to the step.
    """
    raise NotImplementedError


def may_pass(error: BaseException) -> bool:
    """Say whether another try, in a new process and later, may do without this error.

    The store did not answer, a device or the network between devices failed, or a device is out of
    memory: yes. Bad input, divergence, a newer attempt, a bug: no. An error that was translated
    counts as what caused it: `InvalidInput` raised from `StoreUnavailable` may pass.
    """
    raise NotImplementedError

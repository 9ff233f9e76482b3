"""Start the processes that share a training run on this machine, and end them together.

This process is rank 0: it prints, saves and writes the outputs. The others run `worker`, which
trains and does nothing else; what they print goes into files. Whichever of them ends first, by an
error or a signal, is the cause of the end of all: the others only miss it. Where several pods
share the training run, this process is the first one of its pod, and the first pod's is rank 0.
"""

# Documented names of torch.distributed, which pyright does not count as exported.
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import torch
from torch.distributed import TCPStore

from kubestill.errors import InvalidInput, KubestillError, Problem
from kubestill.heartbeat import Pulse
from kubestill.runtime.training.device import choose_machine
from kubestill.runtime.training.distributed import Together, in_group, process_group
from kubestill.runtime.training.nodes import Node, leads_pods, meet
from kubestill.runtime.training.run import Task, say, train
from kubestill.supervision import die_with, may_pass

_HOST = "127.0.0.1"
_GRACE_SECONDS = 2.0
"""How long processes that miss another have to say so."""
_START_SECONDS = 300.0
"""How long processes wait for each other at least before the first step: they import and read."""
_STUCK_SECONDS = 15.0
"""How long this process may go on after another has ended, before it is ended too."""
_END_SECONDS = 60.0
"""How long the others may take to end after a training run that went well."""


class RankLost(ConnectionError):
    """One of the processes is gone, or hangs: another attempt may do without."""


class RankFailed(RuntimeError):
    """One of the processes failed in a way that another attempt would repeat."""


def count_processes(task: Task) -> int:
    """Return how many processes of this machine share the training run, this one included.

    Raises:
        InvalidInput: `torchrun` started more than there are micro-batches, or fewer GPUs are
            visible than processes are asked for.
    """
    settings, device = task.job.settings, task.job.machine.device
    leaves, asked = settings.virtual_workers, settings.processes
    if in_group():
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world > leaves > 1:
            remedy = f"each of the {world} processes takes one; use {1 << (world - 1).bit_length()}"
            raise InvalidInput([Problem("settings.virtual_workers", leaves, remedy)])
        return 1
    if settings.device.startswith("cuda:") or leads_pods(settings):
        return 1
    if node := Node.here():
        asked = node.processes
        if settings.trainjob.accelerators and device.type == "cpu":
            remedy = "torch sees none in its pod: check trainjob.accelerator and the image"
            raise InvalidInput(
                [Problem("settings.trainjob.accelerators", settings.trainjob.accelerators, remedy)]
            )
        if (world := node.processes * node.count) > leaves:
            remedy = f"each of the {world} processes takes one; use more"
            raise InvalidInput([Problem("settings.virtual_workers", leaves, remedy)])
    visible = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type == "cuda" and asked > visible:
        remedy = f"each takes a GPU, and {visible} are visible; use 0 for as many as there are"
        raise InvalidInput([Problem("settings.processes", asked, remedy)])
    if leaves == 1 and visible > 1:
        say(
            f"WARNING: {visible} GPUs are visible and one is used: set virtual_workers to "
            f"{1 << (visible - 1).bit_length()} to use all"
        )
    return min(asked or visible, leaves)


@contextmanager
def joined(task: Task) -> Generator[None]:
    """Join the processes that share a task, started here unless `torchrun` did so.

    Raises:
        RankLost: One of them was killed, hangs, or failed in a way that may pass.
        RankFailed: One of them failed otherwise.
    """
    count, node = count_processes(task), Node.here()
    if count < 2 and node is None:
        with process_group():
            yield
        return
    others = _Others(task, count, node)
    try:
        others.await_start()
        with process_group(others.first):
            yield
        others.finish()
    except BaseException as error:
        others.leaving = True
        cause = others.cause(error) if _misses_somebody(error) else None
        if cause is None:
            raise
        # Not from this error, which another attempt might cure.
        raise cause from None
    finally:
        others.close()


class _Others:
    """Every process of this machine but this one."""

    def __init__(self, task: Task, count: int, node: Node | None):
        settings = task.job.settings
        self._timeout, self._node = settings.rank_timeout, node
        self._folder = Path(tempfile.mkdtemp(prefix="kubestill-ranks-"))
        self._patience = patience = max(self._timeout, _START_SECONDS)
        if node:
            store, host, port = meet(node, patience), node.host, node.port
        else:
            store = TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
            host, port = _HOST, store.port
        nodes, index = (node.count, node.rank) if node else (1, 0)
        first, world = index * count, nodes * count
        self.first = Together(store=store, rank=first, world=world, timeout=patience)
        self.leaving = False
        """Whether this process no longer trains."""
        self._ended: list[_Worker] = []
        # The path comes first: what follows may be found there.
        content = pickle.dumps(sys.path) + pickle.dumps((task, host, port, world, patience))
        ranks = range(first + 1, first + count)
        if not first:
            printed = f"; what ranks 1 to {count - 1} print goes to {self._folder}" if ranks else ""
            say(
                f"{world} processes{f' of {nodes} pods' if node else ''} share "
                f"{settings.virtual_workers} micro-batches a step{printed}"
            )
        if sys.platform == "linux" and node is None:
            # The name of a pod need not resolve.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        self._workers = [_Worker(rank, rank - first, self._folder) for rank in ranks]
        for worker in self._workers:
            # In a thread of its own, for the content may hold a model that fine-tuning begins with.
            threading.Thread(target=worker.tell, args=[content], daemon=True).start()
            threading.Thread(target=self._watch, args=[worker], daemon=True).start()

    def await_start(self) -> None:
        """Wait until the others have imported what they need: from then on they miss each other.

        Raises:
            RankLost: One of them takes too long, was killed, or failed in a way that may pass.
            RankFailed: One of them failed otherwise.
        """
        until = time.monotonic() + self._patience
        for worker in self._workers:
            while not self.first.store.check([_started(worker.rank)]):
                failures = [one.failure() for one in self._workers]
                if failure := next(filter(None, failures), None):
                    raise failure
                if time.monotonic() > until:
                    raise RankLost(f"rank {worker.rank} has not started in {self._patience:g} s")
                time.sleep(0.02)

    def _watch(self, worker: _Worker) -> None:
        code = worker.process.wait()
        self._ended.append(worker)
        if not code or self.leaving:
            return
        # An exchange with it fails, and this process leaves. Where it is in none, and does not
        # come to one, nothing else can end it.
        time.sleep(_STUCK_SECONDS)
        if not self.leaving:
            cause = self.cause()
            rank = self.first.rank
            print(f"WARNING: rank {rank} does not notice, and is ended: {cause}")
            sys.stdout.flush()
            if isinstance(cause, RankFailed):
                os._exit(1)
            os.abort()

    def cause(self, error: BaseException | None = None) -> Exception | None:
        """Return what made a process miss another; None where that is not known.

        Args:
            error: How this process noticed.
        """
        until = time.monotonic() + _GRACE_SECONDS
        while len(self._ended) < len(self._workers) and time.monotonic() < until:
            if any(worker.failure() for worker in self._ended):
                break
            time.sleep(0.02)
        for worker in list(self._ended):
            if failure := worker.failure():
                return failure
        # Those that waited for it have given up by now, too.
        hanging = [str(one) for one in self._workers if one not in self._ended]
        if error is None:
            hanging = [_name(self.first.rank, Pulse.current)]
        elif not _TIMEOUT.search(str(error)) or not (hanging or self._node):
            return None
        elif self._node:
            hanging += ["a process of another pod"]
        return RankLost(
            f"{(' or ' if self._node else ' and ').join(hanging)} did not take part for "
            f"{self._timeout:g} s, the setting rank_timeout"
        )

    def finish(self) -> None:
        """Wait for the others after the training run has ended well."""
        self.leaving = True
        if self._node:
            # The store ends with the process that serves it.
            until = time.monotonic() + _END_SECONDS
            ended = self.first.store.add("ended", 1)
            while self._node.rank == 0 and ended < self._node.count and time.monotonic() < until:
                time.sleep(0.05)
                ended = self.first.store.add("ended", 0)
        for worker in self._workers:
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(timeout=_END_SECONDS)
        shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """End the others, whatever they do."""
        self.leaving = True
        for worker in self._workers:
            worker.process.kill()
            worker.process.wait()


class _Worker:
    """Another process, as this one sees it."""

    def __init__(self, rank: int, local: int, folder: Path):
        self.rank = rank
        self._log, self._end = folder / f"rank-{rank}.log", folder / f"rank-{rank}.json"
        pulse = str(folder / f"rank-{rank}.pulse")
        self._pulse = Pulse.in_file(pulse)
        environment = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(local)}
        told = [str(self._end), str(os.getpid()), pulse]
        command = [sys.executable, "-m", "kubestill.runtime.training.worker", *told]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment
            )

    def __str__(self) -> str:
        return _name(self.rank, self._pulse)

    def tell(self, content: bytes) -> None:
        """Hand over what to do."""
        assert self.process.stdin
        with suppress(BrokenPipeError), self.process.stdin as stdin:
            stdin.write(content)

    def failure(self) -> Exception | None:
        """Return what ended it, unless it ended well or for want of another."""
        code = self.process.poll()
        if not code:
            return None
        if code < 0:
            by = (
                "SIGKILL (out of memory, or by hand)"
                if code == -signal.SIGKILL
                else f"signal {-code}"
            )
            return RankLost(f"rank {self.rank} was killed by {by}")
        said = ""
        with suppress(OSError):
            said = self._end.read_text()
        if not said:
            return RankLost(f"rank {self.rank} ended with code {code}; see {self._log}")
        end: dict[str, Any] = json.loads(said)
        if end["misses"]:
            return None
        kind = RankLost if end["may_pass"] else RankFailed
        return kind(f"rank {self.rank} failed: {end['error']}; see {self._log}")


def serve(path: str, parent: int, pulse: str, content: IO[bytes]) -> int:
    """Be one of the others: train, and leave a word where that fails; return the exit code."""
    die_with(parent)
    Pulse.current = Pulse.in_file(pulse)
    rank = int(os.environ["RANK"])
    try:
        sys.path[:] = pickle.load(content)
        task, host, port, world, timeout = pickle.load(content)
        store = TCPStore(host, port)
        store.set(_started(rank), "")
        with process_group(Together(store=store, rank=rank, world=world, timeout=timeout)):
            machine = choose_machine(task.job.settings)
            train(replace(task, job=replace(task.job, machine=machine)))
    except BaseException as error:
        first = f"{type(error).__name__}: {error}"
        end = {"error": first, "may_pass": may_pass(error), "misses": _misses_somebody(error)}
        Path(path).write_text(json.dumps(end))
        raise
    return 0


def _name(rank: int, pulse: Pulse) -> str:
    return f"rank {rank}" if pulse.steps is None else f"rank {rank} (last step {pulse.steps})"


def _started(rank: int) -> str:
    return f"started/{rank}"


_TIMEOUT = re.compile(r"[Tt]imed?[ -]?out")
_OF_AN_EXCHANGE = re.compile(
    _TIMEOUT.pattern + r"|gloo|NCCL|nccl|Connection (closed|reset|refused)|Broken pipe"
)


def _misses_somebody(error: BaseException) -> bool:
    """Return whether an error is about another process that is gone."""
    if not isinstance(error, RuntimeError) or isinstance(error, KubestillError):
        return False
    return type(error).__name__.startswith("Dist") or bool(_OF_AN_EXCHANGE.search(str(error)))

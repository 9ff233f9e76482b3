"""A step that ends as its arguments say, one word a try: `victim.py FOLDER RESTARTS WORD...`.

Each try appends its process id and the try before it to FOLDER/tries.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from kubestill import supervision
from kubestill.errors import InvalidInput, Problem, StoreUnavailable
from kubestill.heartbeat import Pulse
from kubestill.supervision import last_try, supervise

FOLDER, RESTARTS, WORDS = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
TRIES = FOLDER / "tries"


def run() -> None:
    """Be one try."""
    before = last_try()
    with TRIES.open("a") as file:
        file.write(f"{os.getpid()} {before.ended if before else ''}\n")
    atexit.register(lambda: print("left in order"))
    word = WORDS[len(TRIES.read_text().splitlines()) - 1]
    print(f"try: {word}", flush=True)
    match word:
        case "fine":
            return
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "killed for memory" | "killed for memory, version 1":
            count_kills(1)
            os.kill(os.getpid(), signal.SIGKILL)
        case "hangs":
            Pulse.current.begin(rank=0, timeout=0.2)
            for step in range(41):
                Pulse.current.beat(step + 1)
            os.kill(os.getpid(), signal.SIGSTOP)
        case "takes its time":
            Pulse.current.begin(rank=0, timeout=0.2)
            Pulse.current.beat(41)
            Pulse.current.rest()
            time.sleep(2.5)
        case "segfault":
            ctypes.string_at(0)
        case "bad input":
            raise InvalidInput([Problem("epochs", -1, "use 1 or more")])
        case "no store":
            try:
                raise StoreUnavailable("s3://bucket does not answer")
            except StoreUnavailable as error:
                raise InvalidInput([Problem("checkpoint_uri", "s3://bucket", "no")]) from error
        case "exit":
            sys.exit(7)
        case "crash on the way out":
            atexit.register(os.abort)
            raise ValueError("of a bug")
        case "saves when stopped":
            signal.signal(signal.SIGTERM, save)
            (FOLDER / "ready").touch()
            time.sleep(60)
        case "is killed when stopped":
            signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            (FOLDER / "ready").touch()
            time.sleep(60)
        case "leaves a process behind":
            if not os.fork():
                (FOLDER / "left").write_text(str(os.getpid()))
                time.sleep(60)
            while not (FOLDER / "left").exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        case _:
            raise AssertionError(word)


def save(*_: object) -> None:
    """Take a moment for a checkpoint, then end as the signal wants."""
    with (FOLDER / "saved").open("a") as file:
        file.write("once\n")
    time.sleep(0.3)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def count_kills(kills: int) -> None:
    """Have the kernel say how often it killed for lack of memory, in the words of a real node."""
    if any("version 1" in word for word in WORDS):
        group = FOLDER / "memory"
        group.mkdir(exist_ok=True)
        words = f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n"
        (group / "memory.oom_control").write_text(words)
        (group / "memory.limit_in_bytes").write_text(f"{2 << 30}\n")
    else:
        (FOLDER / "memory.events").write_text(f"low 0\noom {kills}\noom_kill {kills}\n")
        (FOLDER / "memory.max").write_text(f"{2 << 30}\n")


def forget() -> None:
    """Note that the outputs were to be cleared."""
    with (FOLDER / "forgotten").open("a") as file:
        file.write("once\n")


count_kills(0)
supervision._CGROUP = str(FOLDER)
heavy = {"kfp", "torch", "numpy", "google", "multiprocessing"} & set(sys.modules)
assert not heavy, f"the parent imports {heavy}"
ended = supervise(run, restarts=RESTARTS, forget=forget)
print(f"ended: {ended.error}, may pass: {ended.may_pass}, tries: {len(ended.tries)}")
sys.exit(ended.code)

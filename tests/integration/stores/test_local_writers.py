"""Real processes committing to one local cell, some of them killed: nothing is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from kubestill.runtime.stores import open_store

WRITER = """
import sys
from kubestill.errors import Conflict
from kubestill.runtime.stores import open_store
root, writer, commits = sys.argv[1], sys.argv[2], int(sys.argv[3])
cell = open_store(root).cell("ledger.json")
for number in range(commits):
    while True:
        content, version = cell.read()
        try:
            item = f"{writer}-{number}\\n".encode()
            cell.swap((content or b"") + item, expect=version)
            break
        except Conflict:
            continue
    print(f"{writer}-{number}", flush=True)
"""


def start(root: Path, writer: str, commits: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(root), writer, str(commits)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_four_processes_lose_none_of_1200_commits(tmp_path: Path) -> None:
    writers = [start(tmp_path, str(number), 300) for number in range(4)]
    acknowledged = [line for writer in writers for line in writer.communicate()[0].split()]

    assert [writer.returncode for writer in writers] == [0] * 4
    lines = open_store(str(tmp_path)).get("ledger.json").decode().split()
    assert len(acknowledged) == 1200
    assert sorted(lines) == sorted(acknowledged)


def test_killed_processes_leave_every_acknowledged_commit(tmp_path: Path) -> None:
    dice = random.Random(4)
    acknowledged: list[str] = []
    for round in range(10):
        writers = [start(tmp_path, f"{round}.{number}", 10_000) for number in range(2)]
        while not (tmp_path.exists() and os.listdir(tmp_path)):
            time.sleep(0.01)
        time.sleep(0.3 + dice.random() * 0.3)
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
        for writer in writers:
            acknowledged += writer.communicate()[0].split()

    store = open_store(str(tmp_path))
    lines = store.get("ledger.json").decode().split()
    assert len(set(lines)) == len(lines)
    assert set(acknowledged) <= set(lines)
    assert len(lines) <= len(acknowledged) + 20, "at most one unacknowledged a killed process"

    store.check_writable()
    assert [name for name in os.listdir(tmp_path) if name.endswith(".tmp")] == []

"""SIGKILL at random moments: what is restored is bit-equal to what was saved, to the very end."""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from kubestill.runtime.checkpoints.inspection import describe, ledgers, verify

sys.path.insert(0, str(Path(__file__).parent))
import toy  # noqa: E402

STEPS, EVERY = 120, 10
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["google.cloud.storage", "kubestill.runtime.checkpoints.checkpointer"])
KILLS = int(os.environ.get("KUBESTILL_KILLS", "12"))


@pytest.fixture(scope="module")
def digests() -> list[str]:
    """The state's digest at every step of an uninterrupted training."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    state = toy.fresh()
    found = [toy.digest(state)]
    for _ in range(STEPS):
        toy.advance(state)
        found.append(toy.digest(state))
    torch.set_num_threads(threads)
    return found


@pytest.fixture(scope="module")
def span(tmp_path_factory: pytest.TempPathFactory) -> float:
    """How many seconds an uninterrupted training takes on this processor."""
    root = tmp_path_factory.mktemp("undisturbed")
    training = Toy(str(root / "root"), root / "log", {})
    training.await_start()
    begun = time.monotonic()
    training.join()
    return time.monotonic() - begun


class Toy:
    """One process of the toy training."""

    def __init__(self, uri: str, log: Path, env: dict[str, str], steps: int = STEPS):
        self._log = log
        log.unlink(missing_ok=True)
        arguments = (uri, steps, EVERY, str(log), env)
        self.process = FORKS.Process(target=toy.process, args=arguments, daemon=True)
        self.process.start()

    def lines(self) -> list[str]:
        if not self._log.exists():
            return []
        return [line.strip() for line in self._log.read_text().splitlines(True) if line[-1] == "\n"]

    def await_start(self) -> None:
        while not self.lines() and self.process.is_alive():
            time.sleep(0.002)

    def join(self) -> list[str]:
        self.process.join()
        return self.lines()


def survive(
    uri: str,
    log: Path,
    digests: list[str],
    span: float,
    *,
    kills: int,
    seed: int,
    env: dict[str, str],
) -> None:
    """Kill a training so often that it gets about as far with each attempt, and let it end."""
    rng = random.Random(seed)
    committed, done = 0, ""
    for _ in range(kills):
        training = Toy(uri, log, env)
        training.await_start()
        time.sleep(rng.uniform(0.0, 2 * span / kills))
        training.process.kill()
        (first, *others) = training.join() or [""]
        if first.startswith("done"):
            done = first.split()[1]
            break
        _, step, digest = first.split()
        assert digest == digests[int(step)]
        # Lost work is bounded: of the saves that were handed over, two may still be under way.
        assert int(step) >= committed
        saved = [int(line.split()[1]) for line in others if line.startswith("saved")]
        committed = max([committed, int(step), *saved[:-2]])
        assert verify(uri) == []
    if not done:
        training = Toy(uri, log, env)
        done = training.join()[-1].split()[1]
    assert done == digests[STEPS]
    assert verify(uri) == []
    rows = [row for row in describe(uri) if row.kind == "milestone"]
    assert [row.step for row in rows] == [STEPS - EVERY, STEPS]


@pytest.mark.parametrize("seed", [1, 2])
def test_kills_on_local_disk(tmp_path: Path, digests: list[str], span: float, seed: int) -> None:
    root = str(tmp_path / "root")
    survive(root, tmp_path / "log", digests, span, kills=KILLS, seed=seed, env={})
    # No file stays behind but those of listed checkpoints and the ledger itself.
    (ledger,) = ledgers(root)
    listed = {entry.manifest.key.partition("/")[0] for entry in ledger.entries}
    left = {path.parent.name for path in Path(ledger.uri).glob("*/*")}
    assert left == listed


def test_kills_on_cloud_storage(gcs: Any, tmp_path: Path, digests: list[str], span: float) -> None:
    root, log = f"{gcs.uri}/root", tmp_path / "log"
    survive(root, log, digests, span, kills=KILLS // 2, seed=3, env=gcs.env)


def test_sigterm_saves_and_then_ends_the_process(tmp_path: Path) -> None:
    uri = str(tmp_path / "root")
    training = Toy(uri, tmp_path / "log", {}, steps=100_000)
    training.await_start()
    time.sleep(0.1)
    training.process.terminate()
    lines = training.join()
    assert training.process.exitcode == -15
    # The save that the signal asked for does not return: what is logged came before it.
    logged = max(int(line.split()[1]) for line in lines)
    saved = max(row.step for row in describe(uri))
    assert saved > logged
    assert verify(uri) == []
    (ledger,) = ledgers(uri)
    assert ledger.attempt
    assert ledger.attempt.ended == f"stopped by SIGTERM, after step {saved} was saved"

"""SIGKILL at random moments: real processes; every row in one window, one champion."""

from __future__ import annotations

import multiprocessing
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kubestill.runtime.datasets.dataset import Dataset
from kubestill.runtime.retraining import open_registry
from kubestill.runtime.retraining.windows import WindowStore

sys.path.insert(0, str(Path(__file__).parent))
import actor  # noqa: E402
from actor import Scene, rows  # noqa: E402  # pyright: ignore

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["actor"])


def start(folder: Path, run_id: str, decision: str) -> Any:
    process = FORKS.Process(
        target=actor.whole_run, args=(str(folder), run_id, decision), daemon=True
    )
    process.start()
    return process


@pytest.mark.parametrize("seed", [1, 2])
def test_kills(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    scene = Scene(tmp_path)
    delivered = 0
    killed: list[str] = []
    for number in range(12):
        scene.deliver(f"{number}.parquet", rows(delivered, 20, day=f"2013-{number + 1:02d}-01"))
        delivered += 20
        run_id = rng.choice([f"run{number}", *killed[-1:]])
        # Two at once, every now and then.
        others = [start(tmp_path, f"other{number}", "healthy")] if number % 3 == 2 else []
        process = start(tmp_path, run_id, rng.choice(["promote", "healthy", "reject"]))
        time.sleep(rng.uniform(0.02, 0.6))
        process.kill()
        process.join()
        killed.append(run_id)
        for other in others:
            other.join()
    for last in ("last", "really-last"):
        process = start(tmp_path, last, "promote")
        process.join()
        assert process.exitcode == 0
    check(scene, delivered)


def test_two_runs_at_once_are_one_champion_and_one_bystander(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.deliver("a.parquet", rows(0, 50))
    both = [start(tmp_path, f"run{number}", "promote") for number in range(4)]
    for process in both:
        process.join()
    process = start(tmp_path, "last", "promote")
    process.join()
    check(scene, 50)


def check(scene: Scene, delivered: int) -> None:
    registry = open_registry(scene.registry.uri)
    state = registry.read()
    windows = WindowStore(registry, state)
    ids: Counter[int] = Counter()
    for window in state.windows:
        for half in ("train", "judge"):
            frame = Dataset.open(windows.uri(window.id, half)).to_pandas()
            ids.update(int(value) for value in frame["id"])
    assert ids == Counter(range(delivered))
    assert state.claim is None
    made = [one for one in (state.champion, *state.previous) if one]
    assert [one.version for one in made] == list(range(len(made), 0, -1))
    assert state.champion is not None
    outcomes = {run.run_id: run.outcome.outcome for run in registry.runs() if run.outcome}
    assert {window.run_id: window.verdict for window in state.windows}.items() <= outcomes.items()

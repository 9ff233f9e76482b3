"""How long does a scheduled run take that finds nothing to do, and one that only judges?

A champion is trained once, on 8,000 rows. Then 400 more arrive, and runs start from copies of its
registry, as a schedule starts them: `kubestill run continuous-retraining`, in a process of its own,
on its defaults. What is measured is the wall time of the whole command, the shortest of several:
other work on the machine only adds to it.

    python -m bench.bench_scheduled [--repeats 5]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from bench.results import Measure, write
from kubestill.runtime.retraining import open_registry

LEARNED, FRESH = 8000, 400
BEFORE, AFTER = "2026-01-01", "2026-02-01"
BAR = 6.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        prepare(place)
        figures = [both(place, number) for number in range(told.repeats)]
    judging, idle = (min(column) for column in zip(*figures, strict=True))
    peer = f"shortest of {told.repeats} runs of the whole command"
    write(
        "scheduled",
        [
            Measure(
                name="a run that only judges",
                value=judging,
                bar=BAR,
                at_least=False,
                unit="s",
                peer=f"{FRESH} fresh rows; {peer}",
            ),
            Measure(name="a run without fresh rows", value=idle, unit="s", peer=peer),
        ],
    )


def prepare(place: Path) -> None:
    """Write rows, and train a champion on those of December."""
    random = np.random.default_rng(0)
    x = random.normal(size=(LEARNED + FRESH, 4))
    chance = 1 / (1 + np.exp(-x @ [2.0, 1.0, 0.5, 0.0]))
    rows = pd.DataFrame(x, columns=list("abcd"))
    rows["y"] = np.where(random.random(len(x)) < chance, "yes", "no")
    rows["t"] = [
        *pd.date_range("2025-12-01", "2025-12-31", periods=LEARNED),
        *pd.date_range("2026-01-02", "2026-01-30", periods=FRESH),
    ]
    (place / "source").mkdir()
    rows[:LEARNED].to_parquet(place / "source" / "1.parquet")
    rows[LEARNED:].to_parquet(place / "source" / "2.parquet")
    run(place, "first", BEFORE)


def both(place: Path, number: int) -> tuple[float, float]:
    """Time a run that judges, and one after it, on a copy of the registry."""
    folder = f"copy{number}"
    shutil.copytree(place / "first" / "registry", place / folder / "registry")
    took = run(place, folder, AFTER), run(place, folder, AFTER)
    history = open_registry(str(place / folder / "registry")).runs()
    outcomes = [one.outcome.outcome for one in history if one.outcome]
    assert sorted(outcomes) == ["healthy", "promoted", "waiting"], outcomes
    print(f"judged in {took[0]:.2f} s, nothing to do in {took[1]:.2f} s", flush=True)
    return took


def run(place: Path, folder: str, as_of: str) -> float:
    command = [sys.executable, "-m", "kubestill", "run", "continuous-retraining"]
    given = {"source": place / "source", "timestamp": "t", "target": "y"}
    command += [f"--output={place / folder}", f"--as-of={as_of}"]
    command += [f"-p{name}={value}" for name, value in given.items()]
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    took = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return took


if __name__ == "__main__":
    main()

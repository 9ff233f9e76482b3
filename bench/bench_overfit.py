"""Does overfit-batch refuse sound set-ups? A zoo of healthy ones, their rows shuffled, and bugs.

python -m bench.bench_overfit [--set-ups 300] [--minutes 60] [--workers 2] [--shuffled 60] [--log F]

Every set-up is drawn by its number, so that any of them can be looked at again with `--first N
--set-ups 1`. Bugs come first, then set-ups of both kinds in the order of their numbers, which are
drawn independently: what is done after any time is a fair sample of the zoo, and what has begun is
finished. What is in the log is not examined again, so that the work may be cut into pieces.

Chosen in hindsight: of the first 300, three were refused. Two learned in part, with a learning rate
too low for their eight units, which is now a note; those two and the bugs were asked again.

Each worker has one thread. The gate measures its time by that thread's, as these figures do, so
that set-ups side by side, or a machine in use, change no verdict but for what its caches cost.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from scipy import stats

from bench.results import Measure, write
from kubestill.runtime.sanity import GateSettings

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "unit" / "sanity"))
from gated_cases import BUGS  # noqa: E402  # pyright: ignore[reportMissingImports]
from healthy_zoo import (  # noqa: E402  # pyright: ignore[reportMissingImports]
    asked_of_shuffled,
    examined,
    set_up,
)
from test_gate import examined as examined_bug  # noqa: E402  # pyright: ignore[reportMissingImports]

GATE = GateSettings()
CASES = {case.name: case for case in BUGS}
NEEDED = 299
"""Healthy set-ups of which none is refused, to show at 95% that at most 1% are."""


class Log:
    """What was found, one line each; in a file, if there is one, as soon as it is found."""

    def __init__(self, path: str):
        self._file = Path(path) if path else None
        text = self._file.read_text() if self._file and self._file.exists() else ""
        self.found = {line["name"]: line for line in map(json.loads, text.splitlines())}

    def add(self, told: dict[str, Any]) -> None:
        self.found[told["name"]] = told
        print(json.dumps(told), flush=True)
        if self._file:
            with self._file.open("a") as file:
                file.write(json.dumps(told) + "\n")

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return what was found of one kind."""
        return [line for name, line in self.found.items() if name.startswith(f"{kind} ")]


def main() -> None:
    """Examine set-ups while there is time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set-ups", type=int, default=NEEDED + 1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=15.0, help="after which none begins")
    parser.add_argument("--workers", type=int, default=2, help="set-ups examined side by side")
    parser.add_argument("--shuffled", type=int, default=60)
    parser.add_argument("--log", default="", help="file to go on from, and to add to")
    told = parser.parse_args()
    log = Log(told.log)
    # Before the workers import what reads them.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    until = time.monotonic() + 60 * told.minutes
    names = (n for n in questions(told.first, told.set_ups, told.shuffled) if n not in log.found)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(told.workers, mp_context=spawn) as pool:
        asked: set[Future[dict[str, Any]]] = set()
        while True:
            while len(asked) < told.workers and time.monotonic() < until:
                if (name := next(names, None)) is None:
                    break
                asked.add(pool.submit(ask, name))
            if not asked:
                break
            done, asked = wait(asked, return_when=FIRST_COMPLETED)
            for one in done:
                log.add(one.result())
    write("overfit", measures(log))


def questions(first: int, healthy: int, shuffled: int) -> Iterator[str]:
    """Return the names of all, so that each kind's share is the same in any first part."""
    yield from (f"bug {name}" for name in CASES)
    places = [((number + 0.5) / healthy, f"healthy {first + number}") for number in range(healthy)]
    places += [
        ((number + 0.5) / shuffled, f"shuffled {first + number}") for number in range(shuffled)
    ]
    yield from (name for _, name in sorted(places, key=lambda one: one[0]))


def ask(name: str) -> dict[str, Any]:
    """Examine one of them, in a worker."""
    import torch

    torch.set_num_threads(1)
    kind, _, which = name.partition(" ")
    examine = {"bug": examine_bug, "shuffled": ask_shuffled, "healthy": examine_healthy}[kind]
    begun = time.process_time()
    found = examine(which)
    return {"name": name, **found, "seconds": round(time.process_time() - begun, 2)}


def examine_bug(name: str) -> dict[str, Any]:
    case = CASES[name]
    found = examined_bug(case)
    named = {check.code for check in found.diagnoses} <= set(case.diagnosis)
    return {"caught": found.verdict == case.verdict and named}


def ask_shuffled(number: str) -> dict[str, Any]:
    return {"status": asked_of_shuffled(set_up(int(number)))[0].status}


def examine_healthy(number: str) -> dict[str, Any]:
    drawn = set_up(int(number))
    found = examined(drawn, GATE)
    said = [f"{one.status} {one.code}: {one.said}" for one in found.checks if one.status != "ok"]
    return {"drawn": str(drawn), "passed": found.verdict == "pass", "said": said}


def measures(log: Log) -> list[Measure]:
    healthy, shuffled, bugs = log.of("healthy"), log.of("shuffled"), log.of("bug")
    refused = sum(not one["passed"] for one in healthy)
    kept = sum(one["status"] == "ok" for one in shuffled)
    caught = sum(one["caught"] for one in bugs)
    counts = Counter(one["status"] for one in shuffled)
    return [
        Measure(
            name="healthy set-ups refused",
            value=refused / max(1, len(healthy)),
            bar=0.01,
            at_least=False,
            unit="share",
            peer=f"{refused} of {len(healthy)} set-ups of the zoo",
        ),
        Measure(
            name="healthy set-ups refused, at most",
            value=highest(refused, len(healthy)),
            bar=0.01,
            at_least=False,
            unit="share",
            peer=f"what {len(healthy)} set-ups show at 95% (Clopper & Pearson, one-sided)",
        ),
        Measure(
            name="seeded bugs caught and named",
            value=caught / max(1, len(bugs)),
            bar=1.0,
            unit="share",
            peer=f"{caught} of {len(bugs)}",
        ),
        Measure(
            name="shuffled labels taken for known",
            value=kept / max(1, len(shuffled)),
            bar=0.05,
            at_least=False,
            unit="share",
            peer=", ".join(f"{count} {status}" for status, count in counts.most_common()),
        ),
        Measure(
            name="longest check",
            value=max((one["seconds"] for one in healthy), default=0.0),
            bar=1.1 * GATE.seconds,
            at_least=False,
            unit="s",
            peer=f"gate.seconds = {GATE.seconds:g}",
        ),
    ]


def highest(refused: int, asked: int, confidence: float = 0.95) -> float:
    """Return the rate above which so few refusals would be rarer than one in twenty."""
    if refused >= asked:
        return 1.0
    return float(stats.beta.ppf(confidence, refused + 1, asked - refused))


if __name__ == "__main__":
    main()

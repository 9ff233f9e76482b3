"""Does overfit-batch refuse sound set-ups? A zoo of healthy ones, their rows shuffled, and bugs.

python -m bench.bench_overfit [--set-ups 300] [--minutes 15] [--shuffled 60] [--log FILE]

Every set-up is drawn by its number, so that any of them can be looked at again with `--first N
--set-ups 1`. What is in the log is not examined again: a few hundred set-ups take an hour, which
may be cut into pieces. Time is that of the processor.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
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


class Log:
    """What was found, one line each; in a file, if there is one, as soon as it is found."""

    def __init__(self, path: str, minutes: float):
        self._file = Path(path) if path else None
        self._until = time.process_time() + 60 * minutes
        text = self._file.read_text() if self._file and self._file.exists() else ""
        self.found = {line["name"]: line for line in map(json.loads, text.splitlines())}

    def ask(self, name: str, question: Callable[[], dict[str, Any]]) -> None:
        """Ask once, while there is time."""
        if name in self.found or time.process_time() > self._until:
            return
        begun = time.process_time()
        told = {"name": name, **question(), "seconds": round(time.process_time() - begun, 2)}
        self.found[name] = told
        print(json.dumps(told), flush=True)
        if self._file:
            with self._file.open("a") as file:
                file.write(json.dumps(told) + "\n")

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return what was found of one kind."""
        return [line for name, line in self.found.items() if name.startswith(f"{kind} ")]


def main() -> None:
    """Examine one set-up after the other while there is time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set-ups", type=int, default=300)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--shuffled", type=int, default=60)
    parser.add_argument("--log", default="", help="file to go on from, and to add to")
    told = parser.parse_args()
    log = Log(told.log, told.minutes)
    for case in BUGS:
        log.ask(f"bug {case.name}", lambda case=case: examine_bug(case))
    for number in range(told.first, told.first + told.shuffled):
        log.ask(f"shuffled {number}", lambda number=number: ask_shuffled(number))
    for number in range(told.first, told.first + told.set_ups):
        log.ask(f"healthy {number}", lambda number=number: examine_healthy(number))
    write("overfit", measures(log))


def examine_bug(case: Any) -> dict[str, Any]:
    found = examined_bug(case)
    named = {check.code for check in found.diagnoses} <= set(case.diagnosis)
    return {"caught": found.verdict == case.verdict and named}


def ask_shuffled(number: int) -> dict[str, Any]:
    return {"status": asked_of_shuffled(set_up(number))[0].status}


def examine_healthy(number: int) -> dict[str, Any]:
    drawn = set_up(number)
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

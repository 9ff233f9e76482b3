"""Does overfit-batch refuse sound set-ups? A zoo of healthy ones, and the same rows shuffled.

python -m bench.bench_overfit [--set-ups 200] [--first 0] [--minutes 15] [--shuffled 60]

Every set-up is drawn by its number, so that any of them can be looked at again with `--first N
--set-ups 1`. Time is that of the processor.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from bench.results import Measure, write
from kubestill.runtime.sanity import GateSettings

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "unit" / "sanity"))
from healthy_zoo import (  # noqa: E402  # pyright: ignore[reportMissingImports]
    asked_of_shuffled,
    examined,
    set_up,
)


def main() -> None:
    """Examine one set-up after the other while there is time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set-ups", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--shuffled", type=int, default=60)
    told = parser.parse_args()
    begun, done, refused, spent = time.process_time(), 0, 0, 0.0
    gate = GateSettings()
    kept = 0
    shuffled: list[str] = []
    for number in range(told.first, told.first + told.set_ups):
        if time.process_time() - begun > 60 * told.minutes:
            break
        before = time.process_time()
        drawn = set_up(number)
        found = examined(drawn, gate)
        spent = max(spent, time.process_time() - before)
        done += 1
        refused += found.verdict != "pass"
        mark = " " if found.verdict == "pass" else "*"
        print(f"{mark} {time.process_time() - before:5.1f} s  {drawn}", flush=True)
        for check in found.checks:
            if check.status != "ok":
                print(f"      {check.status} {check.code}: {check.said}")
    for number in range(told.first, told.first + told.shuffled):
        if time.process_time() - begun > 60 * told.minutes:
            break
        check, _ = asked_of_shuffled(set_up(number))
        shuffled.append(check.status)
        kept += check.status == "ok"
    counts = Counter(shuffled)
    write(
        "overfit",
        [
            Measure(
                name="healthy set-ups refused",
                value=refused / max(1, done),
                bar=0.01,
                at_least=False,
                unit="share",
                peer=f"{done} set-ups of the zoo",
            ),
            Measure(
                name="longest check",
                value=spent,
                bar=1.1 * gate.seconds,
                at_least=False,
                unit="s",
                peer=f"gate.seconds = {gate.seconds:g}",
            ),
            Measure(
                name="shuffled labels taken for known",
                value=kept / max(1, len(shuffled)),
                bar=0.05,
                at_least=False,
                unit="share",
                peer=", ".join(f"{count} {status}" for status, count in counts.most_common()),
            ),
        ],
    )


if __name__ == "__main__":
    main()

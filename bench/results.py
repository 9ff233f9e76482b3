"""What every bench writes: {name, value, bar, unit, peer, holds}, with date and machine kind."""

from __future__ import annotations

import datetime
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One measured figure and the bar it is held against."""

    name: str
    value: float
    unit: str
    peer: str
    bar: float | None = None
    """None where the figure is reported, not judged."""
    at_least: bool = True
    """Whether larger values hold the bar."""

    def to_json(self) -> dict[str, object]:
        form = asdict(self)
        higher = form.pop("at_least")
        if self.bar is None:
            holds = None
        else:
            holds = self.value >= self.bar if higher else self.value <= self.bar
        return {**form, "value": float(f"{self.value:.5g}"), "holds": holds}


def machine() -> str:
    """Say what kind of machine this is, without its name."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    cores = len(os.sched_getaffinity(0))
    instructions = torch.backends.cpu.get_cpu_capability()
    return f"{cores} cores, {platform.machine()} {instructions}, torch {torch.__version__}"


def write(name: str, measures: list[Measure], *, keep: bool = False) -> Path:
    """Write `bench/results/<name>.json` and print the figures.

    With `keep`, figures of other names stay in the file: a bench that is run piece by piece.
    """
    RESULTS.mkdir(exist_ok=True)
    stamp = {"date": datetime.date.today().isoformat(), "machine": machine()}
    rows = [{**measure.to_json(), **stamp} for measure in measures]
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_text()) if keep and path.exists() else []
    names = {row["name"] for row in rows}
    kept = [row for row in before if row["name"] not in names]
    path.write_text(json.dumps([*kept, *rows], indent=1) + "\n")
    for row in rows:
        verdict = {True: "holds", False: "MISSED", None: ""}[row["holds"]]
        bar = "" if row["bar"] is None else f"bar {row['bar']:g}"
        print(f"{row['name']:<64} {row['value']:>10g} {row['unit']:<12} {bar:<12} {verdict}")
    return path

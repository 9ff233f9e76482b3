"""Wherever a training run ends, starting it again ends as if nothing had happened.

Every point where it can end is listed, none is hoped for; see `crashes`. SIGTERM at every step is
always tried, and of all points every 40th, or every KUBESTILL_CRASH_POINTS-th: 1, as in
`make bench-chaos`, is every one.
"""

import os
from collections import Counter
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from crashes import CASES, STEP, Case, end_and_resume, fresh, list_events, outcome, points_of

from kubestill.runtime.datasets.dataset import DatasetWriter
from kubestill.runtime.datasets.schema import Column, Schema

WAVE = Schema(
    columns=(Column(name="x", kind="numeric"), Column(name="y", kind="numeric", role="target")),
    task="regression",
)
EVERY = int(os.environ.get("KUBESTILL_CRASH_POINTS") or 40)


@pytest.fixture(scope="module", autouse=True)
def _server() -> None:
    # Tests before these may have started the fork server, without what these runs import.
    forkserver._forkserver._stop()  # pyright: ignore


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a dataset of a wave and, beside it, its validation rows."""
    root = tmp_path_factory.mktemp("rows")
    for name, count in (("dataset", 72), ("validation", 30)):
        x = np.linspace(-1, 1, count, dtype=np.float32)
        with DatasetWriter(str(root / name), WAVE) as writer:
            writer.write(pd.DataFrame({"x": x, "y": np.sin(3 * x)}))
    return root / "dataset"


@pytest.mark.timeout(3600 if EVERY < 40 else 300)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_a_run_ends_alike_wherever_it_was_ended(case: Case, rows: Path, tmp_path: Path) -> None:
    events = list_events(case, tmp_path / "undisturbed", rows)
    expected = outcome(tmp_path / "undisturbed")
    points = [
        point
        for number, point in enumerate(points_of(events))
        if number % EVERY == 0 or (point.way, point.event) == ("terminated before", STEP)
    ]
    tried: Counter[str] = Counter()
    for point in points:
        root = fresh(tmp_path / "ended")
        printed = end_and_resume(case, root, rows, point)
        assert outcome(root) == expected, (point, printed)
        assert "NOT with the same bits" not in printed
        tried[f"{point.way} {point.event}"] += 1
    print(f"{case.name}: {len(points)} of {len(points_of(events))} points:", dict(tried))

"""Wherever a training run ends, starting it again ends as if nothing had happened.

Every point where it can end is listed, none is hoped for; see `crashes`. Of all points on a disk
every 97th is tried, and of those of one case SIGTERM at every step; in the clouds, where a point
costs more, a handful. KUBESTILL_CRASH_POINTS is another distance: 1, as in `make bench-chaos`, is
every point there is. Where that takes too long, KUBESTILL_CRASH_SECONDS bounds each test, which
then tries points in random order, as far as it gets. A table at the end counts them; where every
point was to be tried, bench/results/chaos.json notes it, too.
"""

import importlib
import os
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from crashes import (
    CASES,
    STEP,
    Case,
    Point,
    Requests,
    Scene,
    WarmProcess,
    end,
    end_and_resume,
    list_events,
    outcome,
    points_of,
    warm_process,
)

from kubestill.runtime.datasets.dataset import DatasetWriter
from kubestill.runtime.datasets.schema import Column, Schema

WAVE = Schema(
    columns=(Column(name="x", kind="numeric"), Column(name="y", kind="numeric", role="target")),
    task="regression",
)
EVERY = int(os.environ.get("KUBESTILL_CRASH_POINTS") or 97)
BENCH = EVERY < 97
SECONDS = float(os.environ.get("KUBESTILL_CRASH_SECONDS") or "inf")
CLOUD_CASES = [case for case in CASES if case.name in ("fused, best", "autograd, last", "L-BFGS")]

Tried = dict[tuple[str, str], Counter[str]]


@pytest.fixture(scope="module")
def tried() -> Iterator[Tried]:
    """Count, by store and case, the points, and those with equal bits and equal milestones."""
    found: Tried = defaultdict(Counter)
    yield found
    columns = ("listed", "tried", "bits", "milestones")
    print("\n| store | case | listed | tried | equal bits | equal milestones |")
    print("|---|---|---|---|---|---|")
    for (store, case), counts in found.items():
        print(f"| {store} | {case} | {' | '.join(str(counts[name]) for name in columns)} |")
    totals = [sum(counts[name] for counts in found.values()) for name in columns]
    print(f"| all | | {' | '.join(map(str, totals))} |")


def _note(store: str, case: str, counts: Counter[str]) -> None:
    """Note the points of one test for bench/README.md, at once: a bench may be run in pieces."""
    sys.path.insert(0, str(Path(__file__).parents[3]))
    results = importlib.import_module("bench.results")
    measure = results.Measure(
        name=f"{store}; {case}: ended alike",
        value=min(counts["bits"], counts["milestones"]),
        unit=f"of {counts['tried']:,} points tried, {counts['listed']:,} listed",
        peer="the undisturbed run",
        bar=counts["listed"],
    )
    results.write("chaos", [measure], keep=True)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a dataset of a wave and, beside it, its validation rows."""
    root = tmp_path_factory.mktemp("rows")
    for name, count in (("dataset", 72), ("validation", 30)):
        x = np.linspace(-1, 1, count, dtype=np.float32)
        with DatasetWriter(str(root / name), WAVE) as writer:
            writer.write(pd.DataFrame({"x": x, "y": np.sin(3 * x)}))
    return root / "dataset"


@pytest.fixture(scope="module")
def process(rows: Path) -> Iterator[WarmProcess]:
    with warm_process(rows) as process:
        yield process


def try_points(
    scene: Scene,
    store: str,
    points: list[tuple[Point, ...]],
    expected: dict[str, Any],
    tried: Tried,
    *,
    listed: int,
    seconds: float = SECONDS,
) -> None:
    """End a run at each of the points, and hold what comes of it against an undisturbed one."""
    wrong: list[Any] = []
    counts = tried[store, scene.case.name]
    counts["listed"] += listed
    began = time.monotonic()
    if SECONDS < float("inf"):
        random.Random(0).shuffle(points)
    for at in points:
        if time.monotonic() - began > seconds:
            break
        scene = scene.again()
        counts["tried"] += 1
        try:
            said = end_and_resume(scene, *at)
            found = outcome(scene.root)
        except (AssertionError, OSError) as error:  # the other points still count
            wrong.append((at, error))
            continue
        same = {name for name in expected if found[name] == expected[name]}
        counts["milestones"] += "milestones" in same
        counts["bits"] += "NOT with the same bits" not in said and same >= expected.keys() - {
            "milestones"
        }
        if same != expected.keys() or "NOT with the same bits" in said:
            wrong.append((at, expected.keys() - same, said))
    if EVERY == 1:
        _note(store, scene.case.name, counts)
    assert wrong == []
    assert counts["tried"] == counts["bits"] == counts["milestones"] > 0


@pytest.mark.timeout(7200 if BENCH else 300)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_a_run_ends_alike_wherever_it_was_ended(
    case: Case, rows: Path, process: WarmProcess, tmp_path: Path, tried: Tried
) -> None:
    scene = Scene(case=case, dataset=rows, root=tmp_path / "run", process=process)
    points = points_of(list_events(scene), "gone from then on")
    all_steps = BENCH or case.name == "fused, best"
    chosen = [
        (point,)
        for number, point in enumerate(points)
        if number % EVERY == 0
        or (all_steps and (point.way, point.event) == ("terminated before", STEP))
    ]
    try_points(scene, "disk", chosen, outcome(scene.root), tried, listed=len(points))


@pytest.mark.timeout(7200 if BENCH else 300)
@pytest.mark.parametrize(
    "case", CLOUD_CASES if BENCH else CLOUD_CASES[:1], ids=lambda case: case.name
)
def test_a_run_in_a_cloud_ends_alike_within_whichever_request_it_was_ended(
    case: Case,
    rows: Path,
    process: WarmProcess,
    tmp_path: Path,
    tried: Tried,
    cloud: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed before a request and after it, its answer lost, refused, and signalled meanwhile."""
    proxy = Requests(cloud.emulator.host)
    # The process under test talks to the proxy; whoever looks at the ledger afterwards does, too.
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.host)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.host)
    uri = f"{cloud.uri}/undisturbed"
    run = tmp_path / "run"
    scene = Scene(case=case, dataset=rows, root=run, uri=uri, proxy=proxy, process=process)
    points = points_of(list_events(scene), "refused")
    assert len(points) > 100
    some = slice(None) if EVERY == 1 else slice(3, None, 9 * EVERY if BENCH else 149)
    chosen = [(point,) for point in points[some]]
    store = uri.partition(":")[0]
    try_points(scene, store, chosen, outcome(scene.root), tried, listed=len(points))
    proxy.stop()


@pytest.mark.timeout(7200 if BENCH else 300)
@pytest.mark.parametrize("case", CASES if BENCH else CASES[:1], ids=lambda case: case.name)
def test_a_run_whose_states_came_back_from_the_spill_folder_ends_alike(
    case: Case, rows: Path, process: WarmProcess, tmp_path: Path, tried: Tried
) -> None:
    """The store is gone from some call on, back again, and the next attempt ends, too.

    Where the time is bounded, half of it goes into listing, as far as that gets.
    """
    scene = Scene(case=case, dataset=rows, root=tmp_path / "run", process=process)
    points = points_of(list_events(scene), "gone from then on")
    expected = outcome(scene.root)
    gone = [point for point in points if point.way == "gone from then on"]
    first = next(n for n, point in enumerate(gone) if point.event.startswith("put_parts state"))
    # What is gone once and back is among the points on a disk, where those are all tried.
    chosen = [] if BENCH else [(point,) for point in gone[first :: 2 * EVERY - 1]]
    began = time.monotonic()
    for point in gone[first + 1 :: 6 * EVERY]:
        if time.monotonic() - began > SECONDS / 2:
            break
        scene = scene.again()
        end(scene, point)
        events = list_events(scene)
        before = events[: events.index(STEP)] if STEP in events else events
        chosen += [(point, again) for again in points_of(before, "gone from then on")[::EVERY]]
    store, listed = "disk, gone and back", len(chosen)
    try_points(scene, store, chosen, expected, tried, listed=listed, seconds=SECONDS / 2)

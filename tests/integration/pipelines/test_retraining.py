"""Scheduled runs of the real pipeline, through the real local runner, on rows that drift."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from steps import find_worker

from kubestill.runtime.datasets.dataset import Dataset
from kubestill.runtime.retraining import State, open_registry
from kubestill.runtime.retraining.windows import WindowStore
from model_registry import model_registry

# Three whole runs: on a busy machine they take their time.
pytestmark = pytest.mark.timeout(900)

ROWS = 1500
STEPS = [
    "collect-fresh",
    "open-champion",
    "judge-champion",
    "finetune-fresh",
    "judge-challenger",
    "promote-model",
    "record-outcome",
]


def month(number: int, drift: float = 0.0) -> pd.DataFrame:
    """A month of rows whose labels follow two columns; with `drift`, the second turns around."""
    random = np.random.default_rng(number)
    x = random.normal(size=(ROWS, 2))
    chance = 1 / (1 + np.exp(-2.0 * x[:, 0] - (1.0 - drift) * x[:, 1]))
    return pd.DataFrame(
        {
            "t": pd.date_range(f"2013-{number:02d}-01", periods=ROWS, freq="20min"),
            "id": [f"row {number * ROWS + place}" for place in range(ROWS)],
            "x0": x[:, 0],
            "x1": x[:, 1],
            "late": np.where(random.random(ROWS) < chance, "yes", "no"),
        }
    )


def arguments(place: Path, as_of: str, **more: str) -> list[str]:
    given = {
        "source": place / "source",
        "golden_source": place / "golden.parquet",
        "timestamp": "t",
        "target": "late",
        "features": "[x0, x1]",
        "network_args": "{hidden: [16]}",
        "epochs": 8,
        "learning_rate": 0.01,
        "finetune_learning_rate": 0.01,
        "strict": "false",
        "gate": "{steps: 50}",
        "evaluation_settings": "{max_forgetting: 0.9, max_unlearned: 0}",
        **more,
    }
    return [
        "run",
        "continuous-retraining",
        f"--output={place / 'runs'}",
        f"--as-of={as_of}",
        *(f"-p{name}={value}" for name, value in given.items()),
    ]


@pytest.fixture(scope="module")
def place(kubestill, tmp_path_factory) -> Path:
    """A source of four months, and a registry whose champion learned from the first.

    The second has its labels shuffled; from the third on the world has changed.
    """
    place = tmp_path_factory.mktemp("retraining")
    (place / "source").mkdir()
    for number in (1, 2, 3, 4):
        rows = month(number, drift=0.0 if number < 3 else 1.6)
        if number == 2:
            rows["late"] = rows.late.sample(frac=1, random_state=0).to_numpy()
        rows.to_parquet(place / "source" / f"2013-{number:02d}.parquet")
    # Nobody forgets this much: that golden rows are scored on is to be seen, not what they decide.
    month(7).head(300).to_parquet(place / "golden.parquet")
    done = kubestill(*arguments(place, "2013-02-01"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "**promoted**" in done.stdout
    return place


def test_a_bad_month_promotes_no_challenger_and_is_named_in_the_report(place, kubestill) -> None:
    done = kubestill(*arguments(place, "2013-03-01"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"✓ (\S+)", done.stdout) == [*STEPS[:3], "record-outcome"]
    why = "late: labels have nothing to do with the rows"
    assert f"**unfit**: These rows are not fit to judge or to learn from. {why}" in done.stdout
    (report,) = (place / "runs").glob("*/reports/judge-champion.html")
    assert why in report.read_text()
    check(place, months=2, champions=1)
    # What `registry release` is to be told stands in the summary.
    told = re.search(r"registry release (\S+) (\S+)`", done.stdout)
    assert told
    window = open_registry(told[1]).read().windows[-1]
    assert (window.id, window.train) == (told[2], "quarantined")


def test_a_decayed_champion_is_replaced_and_the_next_run_does_nothing(place, kubestill) -> None:
    with model_registry() as served:
        told = {"model_registry": served.host, "model_name": "late"}
        done = kubestill(*arguments(place, "2013-04-01", **told))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"✓ (\S+)", done.stdout) == STEPS
    registry = open_registry(str(place / "runs" / "registry"))
    state = registry.read()
    assert state.champion
    assert state.golden
    assert state.champion.decision.record["golden"]["fingerprint"] == state.golden.fingerprint
    assert [one["uri"] for one in served.artifacts] == [registry.model_uri(state.champion)]
    assert "**promoted**" in done.stdout
    again = kubestill(*arguments(place, "2013-04-01"))
    assert re.findall(r"✓ (\S+)", again.stdout) == ["collect-fresh", "record-outcome"]
    assert "**waiting**: 0 fresh rows" in again.stdout
    check(place, months=3, champions=2)


def test_where_fine_tuning_failed_a_challenger_is_trained_from_scratch(place, kubestill) -> None:
    def lose(state: State) -> State:
        """Let the last challenger have lost."""
        *windows, last = state.windows
        lost = last.model_copy(update={"verdict": "rejected"})
        return state.model_copy(update={"windows": (*windows, lost)})

    open_registry(str(place / "runs" / "registry")).change(lose)
    settings = "{max_forgetting: 0.9, max_unlearned: 0.01}"
    anew = {"rebuild_after": "1", "evaluation_settings": settings}
    done = kubestill(*arguments(place, "2013-05-01", **anew))
    assert done.returncode == 0, done.stdout + done.stderr
    ran = re.findall(r"✓ (\S+)", done.stdout)
    assert ran[:5] == [*STEPS[:3], "train-anew", "judge-rebuilt"]
    (summary,) = (place / "runs").glob(f"{newest(place)}/collect-fresh/*/summary")
    assert "1 challenger lost since the last promotion: if one is needed now" in summary.read_text()


def newest(place: Path) -> str:
    return max(path.name for path in (place / "runs").glob("continuous-retraining-*"))


def test_a_failed_run_is_written_down_and_takes_nothing(place, kubestill) -> None:
    before = open_registry(str(place / "runs" / "registry")).read()
    bad = place / "source" / "bad.parquet"
    bad.write_bytes(b"PAR1 and then nothing")
    done = kubestill(*arguments(place, "2013-06-01"))
    bad.unlink()
    assert done.returncode == 1
    assert "bad.parquet" in done.stderr
    assert re.search("record-outcome: failed.*bad.parquet", done.stdout)
    assert open_registry(str(place / "runs" / "registry")).read() == before


@pytest.mark.skipif(
    "KUBESTILL_CHAOS_KILLS" not in os.environ,
    reason="two whole runs, minutes long: set KUBESTILL_CHAOS_KILLS (make bench-chaos)",
)
def test_every_step_is_killed_and_so_is_the_whole_run(place, kubestill) -> None:
    before = open_registry(str(place / "runs" / "registry")).read().versions
    with start(place, "2013-05-01") as process:
        assert process.stdout
        for line in process.stdout:
            if "▸ judge-champion" in line:
                os.killpg(process.pid, signal.SIGKILL)
    killed: list[str] = []
    lines: list[str] = []
    with start(place, "2013-05-01") as process:
        assert process.stdout
        for line in process.stdout:
            lines.append(line)
            started = re.search(r"▸ (\S+)", line)
            if started:
                killed += kill_step(process.pid, started[1])
    assert process.returncode == 0, "".join(lines)
    assert len(killed) >= 4
    check(place, months=4, champions=before + ("**promoted**" in "".join(lines)))


def start(place: Path, as_of: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kubestill", *arguments(place, as_of)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill_step(run: int, name: str) -> list[str]:
    """Kill the step's worker soon after it began; it is started again in its pod."""
    end = time.monotonic() + 2
    while time.monotonic() < end:
        time.sleep(0.05)
        if worker := find_worker(run):
            os.kill(worker, signal.SIGKILL)
            return [name]
    return []


def check(place: Path, *, months: int, champions: int) -> None:
    """Every row of the first months is in exactly one window, and every run has an outcome."""
    registry = open_registry(str(place / "runs" / "registry"))
    state = registry.read()
    windows = WindowStore(registry, state)
    ids: Counter[str] = Counter()
    for window in state.windows:
        for half in ("train", "judge"):
            ids.update(Dataset.open(windows.uri(window.id, half)).to_pandas()["id"])
    assert ids == Counter(f"row {number}" for number in range(ROWS, (months + 1) * ROWS))
    assert state.claim is None
    assert state.champion is not None
    assert state.champion.version == champions
    outcomes = {run.run_id for run in registry.runs() if run.outcome}
    assert {window.run_id for window in state.windows} <= outcomes

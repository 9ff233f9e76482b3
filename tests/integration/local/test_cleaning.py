"""What `kubestill clean` takes, and what it never takes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kubestill.cli.clean import clean_up
from kubestill.local.cleaning import KEEP_ROWS, delete, drop_made_rows, find_leftovers
from kubestill.local.records import RunRecord, StepRecord, alive
from kubestill.runtime.datasets.shelf import Shelf

DAYS = 86_400


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    monkeypatch.setenv("KUBESTILL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return Shelf.default()


def add_run(root: Path, name: str, days: float, **more: object) -> Path:
    folder = root / "p" / name
    folder.mkdir(parents=True)
    moment = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() - days * DAYS))
    given = {"ended": moment, "state": "succeeded", **more}
    RunRecord(id=name, pipeline="p", started=moment, folder=str(folder), **given).write()  # pyright: ignore[reportArgumentType]
    return folder


def add_training(root: Path, name: str, days: float) -> Path:
    place = root / "p" / "checkpoints" / "teacher" / name
    (place / "000000005-a1").mkdir(parents=True)
    (place / "000000005-a1" / "state").write_bytes(b"x" * 1000)
    (place / "ledger.json.0000000001").write_text("{}")
    moment = time.time() - days * DAYS
    for path in (*place.rglob("*"), place):
        os.utime(path, (moment, moment))
    return place


def taken(root: Path, **options: float) -> set[str]:
    return {one.path for one in find_leftovers(str(root), **{"days": 7, "keep": 1, **options})}  # pyright: ignore[reportArgumentType]


def test_old_runs_go_and_the_newest_stay(tmp_path):
    old, older = add_run(tmp_path, "a", 8), add_run(tmp_path, "b", 9)
    newest = add_run(tmp_path, "c", 7.5)
    add_run(tmp_path, "d", 1)
    assert taken(tmp_path) == {str(old), str(older), str(newest)}
    assert taken(tmp_path, keep=2) == {str(old), str(older)}
    assert taken(tmp_path, days=8.5) == {str(older)}


def test_a_run_that_goes_on_stays_with_all_checkpoints_of_its_pipeline(tmp_path):
    run = add_run(tmp_path, "a", 8, state="running", ended="")
    add_run(tmp_path, "b", 1)
    place = add_training(tmp_path, "f1", 8)
    assert taken(tmp_path) == {str(run), str(place)}, "it was killed"
    with alive(str(run)):
        assert taken(tmp_path) == set()


def test_checkpoints_go_by_their_last_use_and_strangers_files_stay(tmp_path):
    place = add_training(tmp_path, "f1", 8)
    add_training(tmp_path, "f2", 1)
    (tmp_path / "p" / "checkpoints" / "teacher" / "mine").mkdir()
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "ledger.json.1").write_text("{}")
    (tmp_path / "p" / "checkpoints" / "link").symlink_to(outside)
    assert taken(tmp_path, days=0) >= {str(place)}
    assert taken(tmp_path) == {str(place)}


def test_what_a_registry_names_stays(tmp_path):
    registry = tmp_path / "p" / "registry"
    registry.mkdir(parents=True)
    run = add_run(tmp_path, "a", 8, arguments={"registry": str(registry)})
    add_run(tmp_path, "b", 1)
    assert taken(tmp_path) == {str(run)}
    (registry / "registry.json.000000003").write_text(json.dumps({"rows": f"{run}/rows"}))
    assert taken(tmp_path) == set()


def test_runs_and_checkpoints_may_lie_in_the_folder_itself(tmp_path):
    run, place = add_run(tmp_path, "a", 8), add_training(tmp_path, "f1", 8)
    assert taken(tmp_path / "p", keep=0) == {str(run), str(place)}
    running = add_run(tmp_path, "b", 1, state="running", ended="")
    with alive(str(running)):
        assert taken(tmp_path / "p", keep=0) == {str(run)}


def test_a_registry_may_write_a_path_in_escapes(tmp_path):
    root = tmp_path / "Länge"
    registry = root / "p" / "registry"
    registry.mkdir(parents=True)
    run = add_run(root, "a", 8, arguments={"registry": str(registry)})
    (registry / "state.json").write_text(json.dumps({"rows": f"{run}/rows"}))
    assert taken(root, keep=0) == set()


def test_a_registry_that_cannot_be_looked_at_keeps_its_runs(tmp_path):
    add_run(tmp_path, "a", 8, arguments={"registry": "somewhere/registry"})
    assert taken(tmp_path, keep=0) == set()


def test_the_cache_keeps_what_a_process_uses(tmp_path, cache):
    held, free = (cache.entry(name, lambda folder: None) for name in ("held", "free"))
    hold = "from kubestill.runtime.datasets.shelf import Shelf; import sys\n"
    hold += "Shelf.default().entry('held', print); print('ready', flush=True); sys.stdin.read()"
    # This process has used both; another one will tell which are free once it has left.
    ask = "from kubestill.local.cleaning import *\n"
    ask += f"found = find_leftovers({str(tmp_path)!r}, days=7, keep=1)\n"
    ask += "print([one.path for one in found]); delete(found)"
    assert taken(tmp_path, days=0) == set()
    for path in cache.root.glob(".in-use-*"):
        path.unlink()
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline()
        moment = time.time() - 8 * DAYS
        for path in (held, free):
            os.utime(path, (moment, moment))
        done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
        assert done.stdout.strip() == str([str(free)]), done.stderr
        assert (held.exists(), free.exists()) == (True, False)
        holder.communicate()


def test_nothing_is_deleted_without_yes(tmp_path):
    run = add_run(tmp_path, "a", 8)
    words = ["--output", str(tmp_path), "--keep", "0"]
    told = CliRunner().invoke(clean_up, words).output
    assert "1 folder, 0.0 MB; --yes deletes them" in told
    assert run.exists()
    assert "deleted 1 folder" in CliRunner().invoke(clean_up, [*words, "--yes"]).output
    assert not run.exists()
    assert "nothing to delete" in CliRunner().invoke(clean_up, words).output


def test_deleting_takes_all_that_was_found(tmp_path, cache):
    place = add_training(tmp_path, "f1", 8)
    delete(find_leftovers(str(tmp_path), days=7, keep=1))
    assert not place.exists()


MEGA = 1_000_000
DIGITS = {
    "augment/u": ("dataset", 3.8),
    "label-with-teacher/u": ("labelled", 4.1),
    "label-with-teacher/v": ("labelled", 4.6),
    "train-teacher/u": ("model", 1.3),
    "reports/u": ("pages", 2.0),
}
"""What a run of the digits leaves, in MB, as measured; beside checkpoints of 121 MB."""


def add_digits(root: Path, number: int, **more: object) -> Path:
    """A run as the default distillation leaves it: the sizes are true, the files are holes."""
    folder = root / "p" / f"r{number}"
    steps = []
    for place, (name, size) in DIGITS.items():
        made = folder / place / name
        made.mkdir(parents=True)
        with open(made / "bytes", "wb") as file:
            file.truncate(int(size * MEGA))
        if name in ("dataset", "labelled"):
            (made / "dataset.json").write_text("{}")
        step = place.partition("/")[0] + ("[1]" if place.endswith("/v") else "")
        steps.append(StepRecord(name=step, ok=True, seconds=20.0, log=f"{place}/log"))
    moment = f"2026-01-01T{number // 60:02d}:{number % 60:02d}:00+00:00"
    given: Any = {"state": "succeeded", "steps": tuple(steps), **more}
    RunRecord(
        id=f"r{number}", pipeline="p", started=moment, ended=moment, folder=str(folder), **given
    ).write()
    return folder


def size_of(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def rows_of(folder: Path) -> int:
    return len(list(folder.rglob("dataset.json")))


def test_twenty_runs_of_the_digits_stay_below_300_megabytes(tmp_path):
    (tmp_path / "p" / "checkpoints").mkdir(parents=True)
    with open(tmp_path / "p" / "checkpoints" / "states", "wb") as file:
        file.truncate(121 * MEGA)
    for number in range(20):
        folder = add_digits(tmp_path, number)
        drop_made_rows(str(tmp_path), "p")
        assert rows_of(folder) == 3
    assert size_of(tmp_path) < 300 * MEGA
    assert len(list(tmp_path.rglob("model/bytes"))) == 20
    assert len(list(tmp_path.rglob("pages/bytes"))) == 20


@pytest.mark.parametrize(
    ("more", "kept"),
    [
        ({}, 0),
        ({"state": "failed"}, 3),
        ({"pipeline": "q"}, 3),
        ({"arguments": {"teacher": "https://llm.example/v1"}}, 3),
        ({"arguments": {"registry": "registry"}}, 3),
        ({"steps": (StepRecord(name="augment", ok=True, seconds=301.0, log="augment/u/log"),)}, 3),
        ({"steps": (StepRecord(name="augment", ok=True, seconds=1.0, log=""),)}, 3),
    ],
    ids=["usual", "failed", "other", "endpoint", "registry", "slow", "no-log"],
)
def test_rows_go_only_where_they_can_be_made_again(tmp_path, monkeypatch, more, kept):
    monkeypatch.chdir(tmp_path)
    given = dict(more)
    folder = add_digits(tmp_path, 0, **{k: v for k, v in given.items() if k != "pipeline"})
    for number in (1, 2):
        add_digits(tmp_path, number)
    (tmp_path / "registry").mkdir()
    (tmp_path / "registry" / "state.json").write_text(json.dumps({"model": str(folder)}))
    drop_made_rows(str(tmp_path), str(given.get("pipeline", "p")))
    assert rows_of(folder) == kept
    assert rows_of(tmp_path) == kept + 6
    monkeypatch.setenv(KEEP_ROWS, "1")
    for number in (3, 4):
        add_digits(tmp_path, number)
    assert drop_made_rows(str(tmp_path), "p") == 0

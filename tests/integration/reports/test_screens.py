"""What a person sees of a report: in a wide window, on a phone, on paper, in a browser."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import certified_parts as parts  # pyright: ignore[reportMissingImports]
import numpy as np
import pandas as pd
import pytest
import test_continuous_eval  # pyright: ignore[reportMissingImports]
import test_reports  # pyright: ignore[reportMissingImports]
import torch
from scene import Scene  # pyright: ignore[reportMissingImports]
from scene import rows as scene_rows  # pyright: ignore[reportMissingImports]

from browser import CHROMIUM, Browser, browser
from kubestill.local.records import RunRecord, StepRecord
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.retraining.outcomes import conclude
from kubestill.runtime.steps.import_dataset import import_dataset
from kubestill.runtime.steps.overfit_batch import overfit_batch
from kubestill.runtime.steps.record_outcome import write_front_page

SIZES: dict[str, dict[str, Any]] = {
    "1200": {"width": 1200},
    "400": {"width": 400},
    "a4": {"paper": "a4"},
    "letter": {"paper": "letter"},
}


@pytest.fixture(scope="session")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no browser on PATH or in $CHROMIUM: apt-get install chromium")
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


def training(folder: Path) -> Path:
    """A training run with phases, milestones and validation rows."""
    held = test_reports.rows(folder / "held", 1)
    return test_reports.train(folder, steps=240, validation=held) / "report"


def _evaluation(folder: Path, task: str) -> Path:
    bench = test_continuous_eval.Bench(folder, task)  # pyright: ignore[reportArgumentType]
    _, out = bench.run(
        model=bench.model("student", 60),
        baseline=bench.model("control", 20),
        teacher=bench.model("teacher", 150, hidden=64),
        slices=["place", "x0"],
    )
    return Path(out["report"].path)


def classes(folder: Path) -> Path:
    """An evaluation of teacher, student and control on classes."""
    return _evaluation(folder, "multiclass")


def values(folder: Path) -> Path:
    """The same on values."""
    return _evaluation(folder, "regression")


def certificate(folder: Path) -> Path:
    """A certificate of a surrogate of two inputs."""
    made = parts.system("Plane")
    rows = parts.make_dataset(folder / "rows", made)
    model = parts.make_model(folder / "model", rows, "Bent", bump=0.2)
    parts.run(folder, model, rows, tolerance=0.5)
    return folder / "out" / "report"


def _table(folder: Path) -> dict[str, LocalArtifact]:
    """Import a table whose columns have long names and remarks."""
    chance = np.random.default_rng(0)
    frame = pd.DataFrame({f"a_rather_long_name_of_a_column_{n}": chance.random(300) for n in "ab"})
    frame["when"] = pd.date_range("2026-01-01", periods=300, freq="h").astype(str)
    towns = np.array(["Llanfairpwllgwyngyllgogerychwyrndrobwll", "Ai", None], dtype=object)
    frame["town"] = towns[chance.integers(0, 3, 300)]
    frame["sold"] = np.where(frame.iloc[:, 0] + 0.1 * chance.random(300) > 0.5, "yes", "no")
    frame.to_parquet(folder / "prices.parquet")
    names = ("dataset", "validation", "holdout", "report", "summary")
    ports = {name: LocalArtifact(str(folder / name)) for name in names}
    given: Any = ports
    import_dataset(source=str(folder / "prices.parquet"), target="sold", **given)
    return ports


def table(folder: Path) -> Path:
    return Path(_table(folder)["report"].path)


def gate(folder: Path) -> Path:
    """A gate that found what is wrong."""
    rows = _table(folder / "table")["dataset"]
    names = ("metrics", "report", "summary", "findings")
    ports: Any = {name: LocalArtifact(str(folder / name)) for name in names}
    overfit_batch(dataset=rows, strict=False, **ports)
    return folder / "report"


def registry(folder: Path) -> Path:
    """The front page of a registry, with runs that promoted, waited and failed."""
    scene = Scene(folder)
    scene.started()
    for number, (decision, unfit) in enumerate((("reject", []), ("unfit", ["x is all 0"]))):
        scene.deliver(
            f"{number}.parquet", scene_rows(200 + 60 * number, 60, day=f"2013-0{number + 2}-01")
        )
        scene.judged(scene.run(f"2013-0{number + 3}-01"), decision, unfit=unfit)
    long = "finetune-fresh: InvalidInput: " + "a/rather/long/path/" * 12
    scene.deliver("last.parquet", scene_rows(400, 60, day="2013-05-01"))
    conclude(scene.registry, scene.run("2013-06-01").run_id, succeeded=False, failure=long)
    assert write_front_page(scene.registry) == ""
    return folder / "registry" / "index.html"


def run(folder: Path) -> Path:
    """The front page of a run that failed."""
    steps = tuple(
        StepRecord(
            name=name, ok=name != "train-student", seconds=73.2, log=f"{name}/x/executor-logs-0"
        )
        for name in ("import-dataset", "train-teacher", "train-student")
    )
    record = RunRecord(
        id="0f0e0d0c-1111-2222-3333-444455556666",
        pipeline="distillation",
        started="2026-11-28T20:00:00+00:00",
        ended="2026-11-28T20:02:00+00:00",
        state="failed",
        cause="train-student failed: " + "Diverged: the loss became NaN " * 5,
        arguments={"dataset": "s3://bucket/" + "deep/" * 30 + "prices.parquet", "rows": 4096},
        steps=steps,
        models={"teacher": "train-teacher/x/model"},
        reports={"train-teacher": "reports/train-teacher.html"},
        folder=str(folder),
    )
    record.write()
    return folder / "index.html"


REPORTS: list[Callable[[Path], Path]] = [
    training,
    classes,
    values,
    certificate,
    table,
    gate,
    registry,
    run,
]


@pytest.fixture(scope="module", params=REPORTS, ids=lambda one: one.__name__)
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each kind of report as a file that a browser opens."""
    folder = tmp_path_factory.mktemp(request.param.__name__)
    (folder / "table").mkdir()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBESTILL_CACHE", str(folder / "cache"))
        written = request.param(folder)
    page = folder / "shown.html"
    page.write_bytes(written.read_bytes())
    return page


MEASURE = r"""
(() => {
  const lines = [];
  const told = (node) => (node.textContent || "").trim().replace(/\s+/g, " ").slice(0, 40);
  const scale = (node) => {
    const matrix = node.getScreenCTM && node.getScreenCTM();
    return matrix ? Math.sqrt(Math.abs(matrix.a * matrix.d - matrix.b * matrix.c)) : 1;
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const small = [];
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const holder = node.parentElement;
    if (!node.textContent.trim() || !holder.getClientRects().length) continue;
    const size = parseFloat(getComputedStyle(holder).fontSize) * scale(holder);
    if (size < LEAST) small.push(size.toFixed(1) + " " + told(holder));
  }
  const wide = document.documentElement.clientWidth;
  const cut = [];
  for (const node of document.querySelectorAll("body *")) {
    if (node.closest("svg") && node.tagName !== "svg") continue;
    const box = node.getBoundingClientRect();
    const scrolls = node.parentElement.closest(".scroll");
    const inside = scrolls && getComputedStyle(scrolls).overflowX !== "visible";
    if (!inside && box.right > wide + 1) cut.push(node.tagName + " " + told(node));
    const style = getComputedStyle(node);
    if (style.overflowX === "hidden" && node.scrollWidth > node.clientWidth + 1)
      cut.push("hidden " + told(node));
  }
  const uncued = [...document.querySelectorAll(".scroll")]
    .filter((one) => one.scrollWidth > one.clientWidth + 1)
    .filter((one) => getComputedStyle(one).backgroundImage === "none" || one.tabIndex !== 0)
    .map(told);
  const scrolling = [...document.querySelectorAll(".scroll")]
    .filter((one) => one.scrollWidth > one.clientWidth + 1)
    .map((one) => one.firstElementChild.tagName);
  const over = [];
  for (const svg of document.querySelectorAll("svg")) {
    const texts = [...svg.querySelectorAll("text")].filter((one) => one.textContent.trim());
    const boxes = texts.map((one) => one.getBoundingClientRect());
    boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b, j) => {
      const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (x > 2 && y > 4) over.push(told(texts[i]) + " / " + told(texts[i + 1 + j]));
    }));
  }
  const stacked = [...document.querySelectorAll(".panels")].map((row) =>
    new Set([...row.children].map((one) => Math.round(one.getBoundingClientRect().left))).size);
  const page = document.documentElement.scrollWidth - wide;
  return {small, cut, uncued, scrolling, over, stacked, page};
})()
"""


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_cut_or_too_small_or_overlaps(report: Path, screen: Browser, size: str) -> None:
    screen.open(report, **SIZES[size])
    # On paper a pixel is 1/96 inch: 7 of them are 5 points.
    least = "10" if "width" in SIZES[size] else "7"
    found = screen.run(MEASURE.replace("LEAST", f"({least} - 0.05)"))
    assert found["page"] <= 0, found
    assert found["cut"] == []
    assert found["small"] == []
    assert found["uncued"] == []
    assert found["over"] == []
    if size == "400":
        assert set(found["stacked"]) <= {1}, "panels stand one below the other"
    if size == "1200":
        assert found["scrolling"] == []


def test_a_page_says_when_in_which_run_and_about_what(report: Path, screen: Browser) -> None:
    screen.open(report, width=1200)
    title, about = screen.run("[document.title, document.querySelector('.about').innerText]")
    for shown in (title, about):
        assert re.search(r"20\d\d-\d\d-\d\d \d\d:\d\d UTC", shown)
        assert re.search(r" rows?\b|prices.parquet", shown) or "registry" in title


CONTRAST = r"""
(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const paint = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const one of colours) { canvas.fillStyle = one; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((v) => v / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const holder = node.parentElement;
    if (!node.textContent.trim() || !holder.getClientRects().length) continue;
    const under = [];
    for (let at = holder; at; at = at.parentElement)
      under.unshift(getComputedStyle(at).backgroundColor);
    const style = getComputedStyle(holder);
    const colour = holder.closest("svg") ? style.fill : style.color;
    const back = light(paint(under)), front = light(paint([...under, colour]));
    const ratio = (Math.max(back, front) + 0.05) / (Math.min(back, front) + 0.05);
    if (ratio < 4.5) found.push(ratio.toFixed(2) + " " + node.textContent.trim().slice(0, 40));
  }
  return found;
})()
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_stands_out(report: Path, screen: Browser, dark: bool) -> None:
    screen.open(report, width=1200, dark=dark)
    assert screen.run(CONTRAST) == []

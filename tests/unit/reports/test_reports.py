"""Reports from records that the engine wrote: complete, safe to embed, deterministic."""

import hashlib
import json
import math
import re
import time
from html import escape as html_escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.base.rounding import at_most
from kubestill.runtime.datasets.dataset import DatasetWriter
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.models.identity import read_digest
from kubestill.runtime.models.model import ModelSpec
from kubestill.runtime.reports.canvas import PAINT, draw
from kubestill.runtime.reports.comparison_plots import agreement_plot, picture
from kubestill.runtime.reports.markdown import markdown_table
from kubestill.runtime.reports.numbers import count, duration, percent, score_text, size
from kubestill.runtime.reports.page import (
    Cell,
    Tile,
    bullets,
    definitions,
    emphasised,
    legend,
    page,
    pill,
    table,
    tiles,
)
from kubestill.runtime.reports.training import training_report, validation_panels
from kubestill.runtime.steps.train_teacher import train_teacher
from kubestill.runtime.stores import open_store
from kubestill.runtime.training.engine import Trainer
from kubestill.runtime.training.record import TrainingRecord, read_training

CLASSES = ("a", "b", "<c>")
SCHEMA = Schema(
    columns=(
        Column(name="x", kind="numeric"),
        Column(name="y", kind="categorical", role="target", categories=CLASSES),
    ),
    task="multiclass",
)
ENDED = "killed by SIGKILL <out of memory>"


def rows(folder: Path, seed: int, classes: int = 3) -> LocalArtifact:
    """Write 48 rows whose labels are chance: nothing can be learned, all can be memorised."""
    chance = np.random.default_rng(seed)
    x = np.float32(chance.uniform(-1, 1, 48))
    with DatasetWriter(str(folder), SCHEMA) as writer:
        writer.write(pd.DataFrame({"x": x, "y": chance.choice(CLASSES[:classes], 48)}))
    return LocalArtifact(str(folder), metadata={"kind": "dataset"})


def train(folder: Path, **given: Any) -> Path:
    """Train a teacher on such rows, with a checkpoint every 12 steps; return its outputs."""
    names = ("model", "ledger", "metrics", "report", "summary")
    ports: Any = {name: LocalArtifact(str(folder / name)) for name in names}
    every = {"milestone_every": 12, "milestone_unit": "steps", "choose": "last"}
    train_teacher(
        dataset=rows(folder / "rows", 0),
        batch_size=16,
        learning_rate=0.05,
        schedule="constant",
        network_args={"hidden": [64]},
        checkpoint_uri=str(folder / "store"),
        settings={**every, "checkpoints": {"recovery_seconds": 1e-3}},
        **given,
        **ports,
    )
    return folder


def record_of(folder: Path) -> TrainingRecord:
    record = read_training(str(folder / "model"))
    assert record
    return record


def report(folder: Path, **changes: Any) -> tuple[str, str]:
    """Write the report of an export anew, with changes to its record."""
    spec = ModelSpec.from_json(json.loads((folder / "model" / "model.json").read_text()))
    digest = read_digest(open_store(str(folder / "model")))
    return training_report(record_of(folder).model_copy(update=changes), spec, digest)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run that was killed once, and that went on until it had memorised its rows."""
    folder = tmp_path_factory.mktemp("trained")
    given = {"validation": rows(folder / "held", 1), "steps": 600}
    milestone = Trainer._milestone  # pyright: ignore[reportPrivateUsage]

    def dying(self: Trainer) -> None:
        milestone(self)
        if self.step == 120:
            raise RuntimeError("killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBESTILL_OWNER", "this task")
        patch.setattr(Trainer, "_milestone", dying)
        with pytest.raises(RuntimeError, match="killed"):
            train(folder, **given)
        patch.setattr(Trainer, "_milestone", milestone)
        last = {"started": 0.0, "seconds": time.time(), "ended": ENDED}
        patch.setenv("KUBESTILL_LAST_TRY", json.dumps(last))
        return train(folder, **given)


class Checker(HTMLParser):
    """Notes tags that are not closed in order."""

    VOID = frozenset({"meta", "br", "link"})

    def __init__(self):
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_training_report_is_well_formed_and_made_from_the_record_alone(trained: Path):
    html, markdown = report(trained)
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    written = (trained / "report").read_text()
    assert re.sub(r'<p class="about">.*</p>\n|(?<=training) · .*(?=</title>)', "", written) == html
    about = re.search(r'<p class="about"><time>(.*) UTC</time> · data: 48 rows \(', written)
    assert about
    assert f"· {about[1]} UTC</title>" in written
    assert (trained / "summary").read_text() == markdown
    assert markdown.count("\n# ") == 0
    assert "a, b, &lt;c&gt;" in html
    assert "<c>" not in html


def test_a_training_run_with_little_to_show_still_has_a_report(tmp_path: Path):
    train(tmp_path, steps=2)
    assert record_of(tmp_path).curves.validation == ()
    html, markdown = report(tmp_path)
    for shown in (re.sub("<[^>]*>", "", html), markdown):
        assert "The teacher trained for 2 steps in" in shown
        assert "Exported step 2: the last milestone" in shown
        assert "the phases" not in shown
        assert "Attempts" not in shown
        assert "validation" not in shown


def test_phases_are_shaded_and_checkpoints_marked(trained: Path):
    record = record_of(trained)
    assert record.phases.boundaries.detail, "the rows were memorised"
    html, _ = report(trained)
    assert "3 overfitting" in html
    assert "overfitting after step" in html
    assert {kept.kind for kept in record.checkpoints} == {"milestone", "recovery"}
    assert "recovery checkpoint" in html


def test_curves_are_those_that_the_engine_follows(trained: Path):
    """No validation loss: what is scored on validation rows are metrics."""
    record = record_of(trained)
    html, _ = report(trained)
    shown = ["training loss", "validation accuracy", "validation log loss (decides)"]
    for title in shown:
        assert f'aria-label="{title} over the optimizer steps"' in html
    assert set(record.curves.validation[0].scores) == {"log_loss", "accuracy"}
    panels = validation_panels([("teacher", "student", "o", record)], "examples")
    assert [panel.title for panel in panels] == shown[1:]
    (curve,) = panels[0].curves
    assert curve.x == [point.examples for point in record.curves.validation]


def test_the_headline_quotes_the_exported_milestone(trained: Path):
    record = record_of(trained)
    last = record.curves.validation[-1]
    assert last.step == record.chosen.step == 600
    for earlier in (record.curves.validation[:-1], ()):
        curves = record.curves.model_copy(update={"validation": earlier})
        html, _ = report(trained, curves=curves)
        assert "of the exported model" not in html, "that milestone has no score"
    html, _ = report(trained)
    assert f"<b>{100 * last.scores['accuracy']:.1f}%</b> accuracy" in html


def test_the_report_names_the_model_by_its_digest(trained: Path):
    html, _ = report(trained)
    assert hashlib.sha256((trained / "model" / "model.json").read_bytes()).hexdigest()[:16] in html


def test_attempts_are_listed_if_there_is_more_than_one(trained: Path):
    html, markdown = report(trained)
    told = ["the beginning", "step 120, with the same bits", "finished"]
    for words in [*told, "Resumed once after an interruption, with the same bits"]:
        assert words in html, words
        assert words in markdown, words
    assert html_escape(ENDED) in html
    assert ENDED not in html
    assert "resumed after an interruption" in html


def test_an_attempt_that_changed_the_bits_says_so(trained: Path):
    record = record_of(trained)
    first, second = record.attempts
    changed = (first, second.model_copy(update={"exact": False}))
    for shown in report(trained, attempts=changed):
        assert "NOT with the same bits" in shown
        assert "NOT always with the same bits" in shown


def test_plots_take_their_colours_and_font_from_the_page():
    svg = draw(
        "p1",
        3,
        2,
        lambda figure: figure.subplots().plot([1, 2], color=PAINT["student"]),
        description='a "line"',
    )
    assert "var(--student)" in svg
    assert "var(--font" in svg
    assert "DejaVu" not in svg
    assert not any(paint in svg for paint in PAINT.values())
    assert re.findall(r'id="([^"]+)"', svg)
    assert all(name.startswith("p1-") for name in re.findall(r'id="([^"]+)"', svg))
    assert svg.startswith("<svg viewBox")
    assert 'aria-label="a &#34;line&#34;"' in svg
    assert "<text" in svg


LABELS = {
    "$0k_$25k": "$0k_$25k",
    "$x^{$": "$x^{$",
    r"\$b$ \frac": r"\$b$ \frac",
    "_a": "_a",
    "日本": "日本",
    "<i>&amp;": "<i>&amp;",
    "a\u202eb": r"a\u202eb",
    "a\x01b": r"a\x01b",
    "\ud800": r"\ud800",
    "x" * 3000: "x" * 59 + "…",
}
"""Label → what a plot shows of it."""


def test_plots_show_every_label_as_it_is():
    labels = list(LABELS)

    def build(figure):
        left, right = figure.subplots(2, 1)
        left.set_yticks(range(len(labels)), labels)
        for label, place in zip(labels, ("title", "xlabel", "ylabel"), strict=False):
            left.set(**{place: label})
        for label in labels:
            left.text(0, 0, label)
            left.annotate(label, (0, 0))
        right.barh(labels, range(len(labels)))

    svg = draw("labels", 30, 20, build, description="a\x01b")
    texts = ["".join(one.itertext()) for one in ElementTree.fromstring(svg).iter() if one.text]
    for label, shown in LABELS.items():
        assert texts.count(shown) >= 4, label
    assert 'aria-label="a\\x01b"' in svg


def test_pages_show_every_label_as_it_is():
    labels = list(LABELS)
    html = page(
        title=labels[0],
        subject="a",
        badge=pill("b", "good"),
        headline="c",
        lead=labels[6],
        body=[
            table(labels, [(label, [Cell(text=label, detail=label)]) for label in labels]),
            bullets(labels),
            definitions(dict.fromkeys(labels, labels)),
            tiles([Tile(value=label, label=label) for label in labels]),
            legend([(label, "good", "o") for label in labels]),
        ],
    )
    assert not re.search("[\u202e\x01\ud800]", html)
    assert "<i>" not in html
    for label in ("$0k_$25k", r"a\u202eb", r"a\x01b", "&lt;i&gt;&amp;amp;"):
        assert html.count(label) >= 2 * 7, label


def test_an_agreement_matrix_of_many_classes_shows_the_busiest():
    matrix = np.diag(np.full(40, 10))
    matrix[33, 38] = 7
    svg = agreement_plot(matrix, [f"k{i}" for i in range(40)], "teacher", "student")
    assert ">k33<" in svg
    assert ">k38<" in svg
    assert svg.count(">k") <= 2 * 16


def test_a_picture_has_every_dark_pixel():
    pixels = np.zeros((4, 5))
    pixels[1, 2:4] = 1.0
    assert "M2 1h2v1h-2z" in picture(pixels, "two pixels")
    assert "<path" not in picture(np.zeros((4, 4)), "blank")


@pytest.mark.parametrize("digits", [2, 3])
def test_a_bound_is_never_written_smaller_than_it_is(digits: int) -> None:
    bounds = 10 ** np.random.default_rng(0).uniform(-12, 9, 2000)
    for bound in [0.244929, 0.245, 0.0, math.inf, *bounds]:
        assert bound <= float(at_most(bound, digits)) <= bound * (1 + 10.0 ** (1 - digits))
    assert (at_most(0.244929), at_most(0.244929, 3), at_most(0.25)) == ("0.25", "0.245", "0.25")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (count(950), "950"),
        (count(18_760), "18.8k"),
        (count(1_000_000), "1M"),
        (size(9640), "9.64 kB"),
        (duration(3.8e-5), "38 µs"),
        (duration(200), "3 min 20 s"),
        (duration(7500), "2 h 05 min"),
        (percent(0.0004), "0.04%"),
        (percent(0.99996), "99.996%"),
        (percent(1.0), "100.0%"),
        (score_text("accuracy", 0.981), "98.1%"),
        (score_text("log_loss", float("nan")), "–"),
        (emphasised("keeps 97.5% & 12 <b>"), "keeps <b>97.5%</b> &amp; <b>12</b> &lt;b&gt;"),
        (emphasised("off by 0.19."), "off by <b>0.19</b>."),
        (emphasised("after 2 min 51 s"), "after <b>2 min</b> <b>51 s</b>"),
    ],
)
def test_numbers_read_well(written, expected):
    assert written == expected


def test_markdown_cells_cannot_break_their_table():
    table = markdown_table(("a", "b"), [("x|y", "1\n2")])
    assert table.splitlines()[-1] == "| x\\|y | 1 2 |"

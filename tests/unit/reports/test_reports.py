"""Reports from realistic records: complete, safe to embed, deterministic."""

import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from kubestill.runtime.reports.canvas import PAINT, draw
from kubestill.runtime.reports.comparison_plots import agreement_plot, picture
from kubestill.runtime.reports.markdown import markdown_table
from kubestill.runtime.reports.numbers import count, duration, percent, score_text, size
from kubestill.runtime.reports.page import emphasised
from kubestill.runtime.reports.training import training_report

SPEC = {
    "format": "kubestill/model/1",
    "task": "multiclass",
    "network": {"factory": "mlp", "args": {"hidden": [32]}},
    "parameters": 2410,
    "outputs": ["a", "b", "<c>"],
    "digest": "0" * 64,
}
ATTEMPTS = [
    {
        "number": 1,
        "began": 1.7e9,
        "last_sign": 1.7e9 + 95,
        "resumed_from": None,
        "exact": True,
        "ended": "killed by SIGKILL <out of memory>",
    },
    {
        "number": 2,
        "began": 1.7e9 + 120,
        "last_sign": 1.7e9 + 300,
        "resumed_from": 1120,
        "exact": True,
        "ended": "",
    },
]


def record(**changes):
    """Return a `training.json` of 600 steps."""
    steps = range(60, 601, 60)
    loss = [{"step": s, "examples": 64 * s, "loss": math.exp(-s / 200)} for s in range(5, 601, 5)]
    validation = [
        {
            "step": s,
            "epoch": s / 60,
            "examples": 64 * s,
            "loss": 0.1 + math.exp(-s / 200),
            "log_loss": 0.1 + math.exp(-s / 200),
            "accuracy": 1 - 0.5 * math.exp(-s / 100),
        }
        for s in steps
    ]
    return {
        "preset": "student",
        "settings": {"network": "mlp", "temperature": 4.0, "checkpoints": {"keep_last": 2}},
        "device": "cpu",
        "step_path": "fused",
        "steps": 600,
        "epochs": 10.0,
        "examples": 38400,
        "seconds": 3.5,
        "stop": {"reason": "budget", "detail": ""},
        "chosen": {"step": 540, "why": "the best log loss <of all>"},
        "attempts": ATTEMPTS,
        "curves": {"train": loss, "validation": validation},
        "checkpoints": [{"step": s, "kind": "milestone", "phase": 1} for s in steps]
        + [{"step": 130, "kind": "recovery", "phase": None}],
        "phases": {"boundaries": {"structure": 200, "detail": 480}, "rule": "", "why": "it fell"},
        "checkpoint_uri": "gs://bucket/place",
        **changes,
    }


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


def test_the_training_report_is_well_formed_and_repeatable():
    html, markdown = training_report(record(), SPEC)
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    assert training_report(record(), SPEC) == (html, markdown)
    assert "of all&gt;" in html
    assert "<of all>" not in html
    assert markdown.count("\n# ") == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"curves": {"train": [], "validation": []}, "checkpoints": [], "chosen": None},
        {"curves": {**record()["curves"], "validation": []}, "phases": None},
        {"attempts": [], "checkpoints": [], "phases": {"boundaries": {"structure": None}}},
    ],
    ids=["nothing recorded", "no validation", "phases not told apart"],
)
def test_a_training_with_little_to_show_still_has_a_report(changes):
    html, markdown = training_report(record(**changes), SPEC)
    assert "600" in html
    assert markdown


def test_phases_are_shaded_and_checkpoints_marked():
    html, _ = training_report(record(), SPEC)
    assert "3 overfitting" in html
    assert "It fell." in html
    assert "recovery checkpoint" in html
    plain, _ = training_report(record(phases=None), SPEC)
    assert "3 overfitting" not in plain


def test_attempts_are_told_where_there_was_more_than_one():
    html, markdown = training_report(record(), SPEC)
    told = ["2023-11-14 22:13:20 UTC", "after 95 s", "the beginning", "step 1,120", "finished"]
    for words in [*told, "with the same bits", "Resumed once after an interruption"]:
        assert words in html, words
        assert words in markdown, words
    assert "killed by SIGKILL &lt;out of memory&gt;" in html
    assert "resumed after an interruption" in html
    for attempts in ([], ATTEMPTS[:1]):
        html, markdown = training_report(record(attempts=attempts), SPEC)
        assert "Attempts" not in html + markdown


def test_an_attempt_that_changed_the_bits_says_so():
    changed = [ATTEMPTS[0], ATTEMPTS[1] | {"exact": False}]
    html, markdown = training_report(record(attempts=changed), SPEC)
    assert "NOT with the same bits" in html
    assert "NOT with the same bits" in markdown


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
    assert "&quot;line&quot;" in svg
    assert "<text" in svg


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

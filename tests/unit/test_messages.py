"""Messages count in words that fit the number: one row, two rows."""

from __future__ import annotations

import ast
import re
from itertools import pairwise
from pathlib import Path

import pytest

import kubestill
from kubestill.errors import InvalidInput, Problem, counted

ROOT = Path(kubestill.__file__).parent
NOUNS = re.compile(
    r"\s+(?:[a-z]+ )?(rows|windows|promotions|parts|values|checkpoints|milestones|schedules|steps|"
    r"attempts|nodes|shards|files|problems|validations|examples|tasks|bytes|points|fields|pods|"
    r"iterations|documents|champions|runs|models|columns|classes|exceptions)\b"
)
SEVERAL = {
    # More than one, or a figure that is rounded or fixed.
    "100 * size",
    "LEAST_ROWS",
    "batch",
    "change.replaced",
    "count",
    "len(rows) - 1",
    "len(windows)",
    "one.attempts",
    "request.rows / shards",
    "sizes[largest]",
    "total",
}
WRITTEN = ("count(", "counted(", "draw_bar(")
"""Functions that write a number as text."""
PACKAGES = (
    "cli",
    "client",
    "local",
    *(
        f"runtime/{name}"
        for name in (
            "curves",
            "evaluation",
            "metrics",
            "reports",
            "retraining",
            "selection",
            "steps",
        )
    ),
)


def plurals(source: str) -> list[str]:
    """Return the expressions whose number stands before a plural that it may not fit."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.JoinedStr):
            continue
        for value, text in pairwise(node.values):
            if not isinstance(value, ast.FormattedValue) or not isinstance(text, ast.Constant):
                continue
            shown, follows = ast.unparse(value.value), str(text.value)
            fits = shown in SEVERAL or shown.startswith(WRITTEN)
            if NOUNS.match(follows) and not fits:
                found.append(f"{node.lineno}: {shown}{follows[:20]}")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_no_message_says_one_rows(package):
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in (ROOT / package).glob("*.py")
        for line in plurals(path.read_text())
    }
    assert not found, "use errors.counted"


def test_what_is_counted_fits_the_number():
    assert [counted(n, "row") for n in (0, 1, 2000)] == ["0 rows", "1 row", "2,000 rows"]
    assert str(InvalidInput([Problem("x", 1, "use 2")])).startswith("1 problem with")

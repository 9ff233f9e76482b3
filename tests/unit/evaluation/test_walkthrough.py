"""The walk-through of rare positives in the documentation: its code prints what stands below it."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs" / "judging.md"


def test_the_walk_through_prints_what_it_shows(capsys) -> None:
    blocks = re.findall(r"```python\n(.*?)```\n+```text\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(blocks) == 1
    for code, shown in blocks:
        exec(compile(code, str(DOCS), "exec"), {})
        assert capsys.readouterr().out.split() == shown.split()

"""The short Markdown beside each HTML report, for interfaces that do not render it."""

from __future__ import annotations

from collections.abc import Sequence

from kubestill.runtime.reports.text import legible


def document(title: str, *blocks: str) -> str:
    """Return a title and blocks, apart by blank lines; empty blocks vanish."""
    return "\n\n".join([f"# {legible(title)}", *(block for block in blocks if block)]) + "\n"


def bullet_list(sentences: Sequence[str]) -> str:
    """Return one bullet a sentence."""
    return "\n".join(f"- {legible(sentence)}" for sentence in sentences)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table, values to the right of the first column; empty without rows."""
    if not rows:
        return ""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    cells = [
        [legible(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)

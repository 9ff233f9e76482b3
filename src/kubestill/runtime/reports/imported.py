"""The report of an import: every column of the table, and what reading it kept, changed or lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby

from kubestill.errors import counted
from kubestill.runtime.datasets.tables import ColumnStory, UserTable
from kubestill.runtime.reports.markdown import bullet_list, document, markdown_table
from kubestill.runtime.reports.page import (
    Cell,
    Html,
    Tile,
    bullets,
    emphasised,
    page,
    pill,
    section,
    table,
    tiles,
)
from kubestill.runtime.reports.text import legible, shortened

_COLUMNS = ("column", "kind", "role", "missing", "what was read, left out or merged")
_SHOWN = 30
"""Columns on the console and in the Markdown; a page takes all."""
_MANY = 1000
"""Columns from which a page puts neighbours that are alike on one line."""
_LONGEST_NAME = 40


def columns_text(found: UserTable) -> list[str]:
    """Return the lines for the console: the columns, or the remarkable ones, and the files."""
    stories = _most_telling(found.stories)
    rows = [_COLUMNS, *(_line(story) for story in stories)]
    rows = [(shortened(legible(name), _LONGEST_NAME), *rest) for name, *rest in rows]
    widths = [max(len(row[at]) for row in rows) for at in range(len(_COLUMNS) - 1)]
    lines = ["  ".join([*map(str.ljust, row, widths), legible(row[-1])]).rstrip() for row in rows]
    # The last line is what a runner shows of a step that is over.
    return [*lines, *_rest(found, stories), *map(legible, found.told), _headline(found)]


def import_report(found: UserTable, rows: Mapping[str, int]) -> tuple[str, str]:
    """Write the report.

    Args:
        found: The table.
        rows: Name of each of the datasets made of it, with its rows.

    Returns:
        The HTML page and the short Markdown.
    """
    headline = _headline(found)
    lines: list[tuple[str | Html, list[Cell]]] = []
    for name, rest in _page_lines(found.stories):
        lines.append((name, [Cell(text=cell) for cell in rest]))
    parts = [Tile(value=f"{count:,}", label=part) for part, count in rows.items()]
    body = [tiles(parts), section("Columns", table(_COLUMNS, lines, prose=True))]
    if found.told:
        body.insert(1, section("Files", bullets(found.told)))
    html = page(
        title="kubestill: import",
        subject="kubestill · import",
        badge=pill(found.schema.task or "no target", "teacher"),
        headline=emphasised(headline),
        lead="What a table loses on its way in, it loses here: every column is listed.",
        body=body,
    )
    stories = _most_telling(found.stories)
    text = document(
        "The table",
        headline,
        bullet_list(found.told),
        markdown_table(_COLUMNS, [_line(story) for story in stories]),
        *_rest(found, stories),
    )
    return html, text


def _headline(found: UserTable) -> str:
    roles = Counter(story.role for story in found.stories)
    said = [f"{roles[role]:,} {word}" for role, word in _ROLES.items() if roles[role]]
    columns = counted(len(found.stories), "column")
    return f"{counted(found.rows, 'row')}, {columns}: {', '.join(said)}."


_ROLES = {
    "feature": "learned from",
    "target": "to predict",
    "soft": "of a teacher",
    "weight": "of weights",
    "group": "of entities",
    "time": "of times",
    "ignored": "kept but not learned from",
    "left out": "left out",
}


def _line(story: ColumnStory) -> tuple[str, ...]:
    told = [*([story.why] if story.why else []), *([story.loss] if story.loss else [])]
    missing = f"{story.missing:,}" if story.missing else ""
    kind = story.kind if story.role != "ignored" else story.stored
    return story.name, kind, story.role, missing, "; ".join([*told, *story.notes])


def _tells(story: ColumnStory) -> bool:
    return bool(story.why or story.loss or story.notes)


def _most_telling(stories: Sequence[ColumnStory]) -> list[ColumnStory]:
    """Return the columns to show where there is room for some: in their order."""
    if len(stories) <= _SHOWN:
        return list(stories)
    ranked = sorted(range(len(stories)), key=lambda at: (not _tells(stories[at]), at))
    return [stories[at] for at in sorted(ranked[:_SHOWN])]


def _rest(found: UserTable, shown: Sequence[ColumnStory]) -> list[str]:
    if len(shown) == len(found.stories):
        return []
    left = len(found.stories) - len(shown)
    telling = sum(map(_tells, found.stories)) - sum(map(_tells, shown))
    more = f", {telling:,} of them with remarks" if telling else ""
    return [f"and {counted(left, 'more column')}{more}; the report lists all."]


def _page_lines(stories: Sequence[ColumnStory]) -> list[tuple[str, tuple[str, ...]]]:
    lines = [(story.name, _line(story)[1:]) for story in stories]
    if len(lines) < _MANY:
        return lines
    merged: list[tuple[str, tuple[str, ...]]] = []
    for rest, group in groupby(lines, key=lambda line: line[1]):
        names = [name for name, _ in group]
        title = names[0]
        if len(names) > 1:
            title += f" to {names[-1]}, {counted(len(names), 'column')}"
        merged.append((title, rest))
    return merged

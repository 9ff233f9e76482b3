"""The HTML shell of a report and the few building blocks it is made of.

A report is one file: no script, no font, no image from anywhere. Every function takes plain text
and escapes it; `Html` marks what is already markup.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import NewType

from kubestill.runtime.reports.style import CSS

__all__ = [
    "Cell",
    "Html",
    "Tile",
    "bullets",
    "definitions",
    "figure",
    "legend",
    "page",
    "pair",
    "pill",
    "section",
    "table",
    "tiles",
]

Html = NewType("Html", str)

_MARKS = {
    "o": '<circle cx="10" cy="6" r="4.2"/>',
    "s": '<rect x="6" y="2" width="8" height="8"/>',
    "D": '<path d="M10 .8 15.2 6 10 11.2 4.8 6z"/>',
    "^": '<path d="M10 1 15 10.5H5z"/>',
    "v": '<path d="M10 11 15 1.5H5z"/>',
    "-": '<rect x="0" y="4.8" width="20" height="2.4" rx="1.2"/>',
    "|": '<rect x="9" y="1" width="2" height="10"/>',
}


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One headline number."""

    value: str
    label: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One table cell: the value, and a smaller line below it."""

    text: str
    detail: str = ""
    best: bool = False


def page(*, title: str, eyebrow: Html, headline: Html, lead: str, body: Sequence[Html]) -> str:
    """Return the whole HTML document."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body><main>"
        f'<header><p class="eyebrow">{eyebrow}</p><h1>{headline}</h1>'
        f'<p class="lead">{escape(lead)}</p></header>'
        f"{''.join(body)}</main></body></html>\n"
    )


def text(value: str) -> Html:
    """Escape plain text."""
    return Html(escape(value))


def emphasised(sentence: str) -> Html:
    """Escape a headline and set its numbers off, times with their units."""
    number = r"(?<![\w#&])\d(?:[\d.,]*\d)?(?:%|×|k|M| (?:µs|ms|s|min|h)\b)?"
    return Html(re.sub(number, r"<b>\g<0></b>", escape(sentence)))


def pill(word: str, tone: str) -> Html:
    """Return a word on a coloured lozenge; `tone` is a colour name of `style.COLOURS`."""
    return Html(f'<span class="pill" style="--tone:var(--{tone})">{escape(word)}</span>')


def section(title: str, *parts: Html, note: str = "") -> Html:
    """Return a card with a heading, a sentence on how to read it, and its content."""
    shown = f'<p class="note">{escape(note)}</p>' if note else ""
    return Html(f"<section><h2>{escape(title)}</h2>{shown}{''.join(parts)}</section>")


def pair(*sections: Html) -> Html:
    """Return cards side by side where the window is wide enough."""
    return Html(f'<div class="pair">{"".join(sections)}</div>')


def tiles(items: Sequence[Tile]) -> Html:
    """Return the row of headline numbers."""
    cards = (
        f'<div class="tile"><div class="value">{escape(item.value)}</div>'
        f'<div class="label">{escape(item.label)}</div>'
        f'<div class="detail">{escape(item.detail)}</div></div>'
        for item in items
    )
    return Html(f'<div class="tiles">{"".join(cards)}</div>')


def table(columns: Sequence[str], rows: Sequence[tuple[Html, Sequence[Cell]]]) -> Html:
    """Return a table; each row is its heading and one cell for every column after the first."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{heading}</th>{"".join(map(_cell, cells))}</tr>'
        for heading, cells in rows
    )
    inner = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return Html(f'<div class="scroll"><table>{inner}</table></div>')


def _cell(cell: Cell) -> str:
    detail = f"<small>{escape(cell.detail)}</small>" if cell.detail else ""
    best = ' class="best"' if cell.best else ""
    return f"<td{best}>{escape(cell.text)}{detail}</td>"


def figure(svg: Html, caption: str = "") -> Html:
    """Return a plot with its caption."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return Html(f"<figure>{svg}{below}</figure>")


def legend(entries: Sequence[tuple[str, str, str]]) -> Html:
    """Return the key of a plot from (name, colour, mark) triples; the marks are matplotlib's."""
    items = (f"<span>{mark(colour, shape)}{escape(name)}</span>" for name, colour, shape in entries)
    return Html(f'<div class="legend">{"".join(items)}</div>')


def mark(colour: str, shape: str) -> Html:
    """Return one small drawn mark in a colour of `style.COLOURS`."""
    return Html(
        f'<svg viewBox="0 0 20 12" aria-hidden="true" style="fill:var(--{colour})">'
        f"{_MARKS[shape]}</svg>"
    )


def swatch(name: str, colour: str, shape: str) -> Html:
    """Return a name behind its mark, for table rows."""
    drawn = mark(colour, shape).replace("<svg ", '<svg width="20" height="12" ', 1)
    return Html(f"{drawn} {escape(name)}")


def bullets(sentences: Sequence[str]) -> Html:
    """Return reasons as a list."""
    return Html(
        f'<ul class="reasons">{"".join(f"<li>{escape(line)}</li>" for line in sentences)}</ul>'
    )


def definitions(values: Mapping[str, object]) -> Html:
    """Return names and values in columns; nested mappings become dotted names."""
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(shown)}</dd></div>"
        for name, shown in flatten(values)
    )
    return Html(f'<dl class="settings">{rows}</dl>')


def flatten(values: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Return (dotted name, shown value) of every leaf, in the order given."""
    found: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found += flatten(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", _leaf(value)))
    return found


def _leaf(value: object) -> str:
    if value is None or value == "" or value == {} or value == []:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(_leaf(item) for item in value)
    return str(value)

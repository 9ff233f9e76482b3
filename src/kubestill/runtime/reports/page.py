"""What a report is made of: a page, and the few building blocks on it.

A report is one file: no script, no font, no image from anywhere. The markup is in `page.html.j2`,
the style sheet in `page.css`. Every function takes plain text and escapes it; `Html` is markup
already.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from markupsafe import Markup as Html

from kubestill.runtime.reports.style import COLOURS
from kubestill.runtime.reports.text import legible

__all__ = [
    "Cell",
    "Html",
    "Tile",
    "bullets",
    "complete",
    "definitions",
    "emphasised",
    "escape",
    "figure",
    "flatten",
    "footer",
    "gallery",
    "heading",
    "legend",
    "link",
    "page",
    "pair",
    "panels",
    "pill",
    "section",
    "subheading",
    "swatch",
    "table",
    "tiles",
]

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

    text: str | Html
    detail: str = ""
    best: bool = False


def page(
    *,
    title: str,
    subject: str,
    badge: Html,
    headline: str | Html,
    lead: str,
    body: Sequence[Html],
) -> str:
    """Return the whole HTML document.

    Args:
        title: Of the browser's tab.
        subject: What the report is about, in small capitals above the headline.
        badge: A pill beside it.
        headline: What was found.
        lead: The sentence or two below it.
        body: Sections and tiles, top down.
    """
    css = Html(files("kubestill.runtime.reports").joinpath("page.css").read_text(encoding="utf-8"))
    given = {"subject": subject, "badge": badge, "headline": headline, "lead": lead, "body": body}
    return str(_markup("page", title=title, colours=COLOURS.items(), css=css, **given)) + "\n"


def complete(document: str, *, date: str, run: str, data: str) -> str:
    """Return a page with what only its writer knows in its head and in its title.

    Args:
        document: As `page` returns it.
        date: When it was written.
        run: Of the pipeline; empty where it is unknown.
        data: The rows that it is about; empty where it is about none.
    """
    named = [*([f"run {run}"] if run else []), *([f"data: {data}"] if data else [])]
    title = escape(" · ".join(["", *filter(None, (data, run)), date]))
    about = _markup("about", date=date, named=named)
    document = document.replace("</title>", f"{title}</title>", 1)
    return document.replace("</header>", f"{about}\n</header>", 1)


def escape(value: str) -> Html:
    """Return plain text as markup that shows all of it."""
    return Html.escape(legible(value))


def emphasised(sentence: str) -> Html:
    """Escape a headline and set its numbers off, times with their units."""
    number = r"(?<![\w#&])\d(?:[\d.,]*\d)?(?:%|×|k|M| (?:µs|ms|s|min|h)\b)?"
    return Html(re.sub(number, r"<b>\g<0></b>", str(escape(sentence))))


def pill(word: str, tone: str) -> Html:
    """Return a word on a coloured lozenge; `tone` is a colour name of `style.COLOURS`."""
    return _markup("pill", word=word, tone=tone)


def section(title: str, *parts: Html, note: str = "") -> Html:
    """Return a card with a heading, a sentence on how to read it, and its content."""
    return _markup("section", title=title, parts=parts, note=note)


def heading(title: str, badge: Html) -> Html:
    """Return the heading of several cards that belong together."""
    return _markup("heading", title=title, badge=badge)


def subheading(title: str) -> Html:
    """Return a heading within a card."""
    return _markup("subheading", title=title)


def pair(*sections: Html) -> Html:
    """Return cards side by side where the window is wide enough."""
    return _markup("pair", sections=sections)


def tiles(items: Sequence[Tile]) -> Html:
    """Return the row of headline numbers."""
    return _markup("tiles", items=items)


def table(
    columns: Sequence[str],
    rows: Sequence[tuple[str | Html, Sequence[Cell]]],
    *,
    prose: bool = False,
) -> Html:
    """Return a table; each row is its heading and one cell for every column after the first.

    Args:
        columns: Their headings.
        rows: Heading and cells of each.
        prose: The cells are sentences, not numbers.
    """
    return _markup("table", columns=columns, rows=rows, prose=prose)


def panels(drawn: Sequence[Html], *, narrow: bool = False) -> Html:
    """Return plots side by side where the window is wide enough; `narrow` ones need less."""
    return _markup("panels", drawn=drawn, narrow=narrow)


def figure(drawn: Html, caption: str = "") -> Html:
    """Return a plot with its caption."""
    return _markup("figure", drawn=drawn, caption=caption)


def gallery(pictures: Sequence[tuple[Html, str, Sequence[tuple[str, str]]]]) -> Html:
    """Return pictures, each with the true label and what (each model, says); errors stand out."""
    return _markup("gallery", pictures=pictures)


def legend(entries: Sequence[tuple[str, str, str]]) -> Html:
    """Return the key of a plot from (name, colour, mark) triples; the marks are matplotlib's."""
    return _markup(
        "legend", entries=[(name, _mark(colour, shape)) for name, colour, shape in entries]
    )


def link(text: str, path: str) -> Html:
    """Return a link to a file below the folder of the page."""
    return Html('<a href="{}">{}</a>').format(quote(path), escape(text))


def swatch(name: str, colour: str, shape: str) -> Html:
    """Return a name behind its mark, for table rows."""
    return Html("{} {}").format(_mark(colour, shape, sized=True), escape(name))


def _mark(colour: str, shape: str, *, sized: bool = False) -> Html:
    return _markup("mark", colour=colour, shape=Html(_MARKS[shape]), sized=sized)


def bullets(sentences: Sequence[str]) -> Html:
    """Return reasons as a list."""
    return _markup("bullets", sentences=sentences)


def definitions(values: Mapping[str, object]) -> Html:
    """Return names and values in columns; nested mappings become dotted names."""
    return _markup("definitions", values=flatten(values))


def footer(*sentences: str) -> Html:
    """Return the small print, one line a sentence."""
    return _markup("footer", sentences=sentences)


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


def _markup(block: str, **values: Any) -> Html:
    return getattr(_blocks(), block)(**values)


@cache
def _blocks() -> Any:
    # Imported here: most steps start without a report, and jinja2 costs them a tenth of a second.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("kubestill.runtime", "reports"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Html) else legible(value),
        trim_blocks=True,
    )
    return made.get_template("page.html.j2").module

"""Colours of the reports; `page.css` is their style sheet.

Series are a blue and an orange beside a neutral, apart for every kind of colour vision, and each
has a marker of its own as well. Everything follows the reader's light or dark preference.
"""

from __future__ import annotations

COLOURS: dict[str, tuple[str, str]] = {
    "paper": ("#f6f7f9", "#0e1116"),
    "card": ("#ffffff", "#171b22"),
    "ink": ("#161a20", "#e8eaee"),
    "muted": ("#5d6673", "#98a2b0"),
    "line": ("#e3e6eb", "#2b313b"),
    "teacher": ("#4a5568", "#b6c0d0"),
    "student": ("#0a6ac2", "#58a8f5"),
    "control": ("#b05208", "#f29b52"),
    "fourth": ("#007864", "#3cc7ab"),
    "fifth": ("#b0408f", "#e58bcb"),
    "good": ("#0b7a4b", "#4cc38a"),
    "bad": ("#b42318", "#ff8b7e"),
    "doubt": ("#8a6100", "#e3b341"),
}
"""CSS variable → colour on light and on dark paper."""

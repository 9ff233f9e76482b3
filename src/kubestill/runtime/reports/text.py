"""Text from data, as a reader can see all of it.

Labels, column names and messages may hold characters that are not seen but act: they turn the
direction of what follows, or end a document. A report shows them as escapes, so that two labels
that differ in nothing else still look different.
"""

from __future__ import annotations

import unicodedata

_ACTING = {"Cc", "Cf", "Co", "Cs", "Cn"}
"""Unicode's categories of control, direction, private use, surrogates and what is unassigned."""
_KEPT = "\n\t\u200c\u200d"
"""The joiners are among them: some scripts cannot be written without."""


def legible(text: object) -> str:
    r"""Return the text with what cannot be seen written as an escape such as `\u202e`."""
    return "".join(
        one
        if one in _KEPT or unicodedata.category(one) not in _ACTING
        else one.encode("unicode_escape").decode("ascii")
        for one in str(text)
    )


def shortened(text: str, longest: int) -> str:
    """Return the text, or its first characters and an ellipsis: `longest` characters at most."""
    return text if len(text) <= longest else text[: longest - 1] + "…"

"""Credentials stay out of logs, records and messages."""

from __future__ import annotations

import re

__all__ = ["redact"]


def redact(text: str) -> str:
    """Return the text without credentials: those in URIs, and what follows names of secrets."""
    for pattern in _SECRETS:
        text = pattern.sub(r"\1***", text)
    return text


_KEY = (
    r"(?:(?:secret|private|access|account|api)[-_]?key(?:[-_]?id)?|secret|passw(?:or)?d|pwd"
    r"|passphrase|token|signature|credential|\bsig)['\"]?\s*[=:]\s*"
)
_SECRETS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # A password may hold '/' and '@'; a port is none, unless an '@' comes soon behind it.
        r"(://)[^\s'\"/@:]*:(?!\d+/(?:[^\s'\"@]*/)?@)[^\s'\"]*(?=@)",
        r"(://)[^\s'\"/@]+(?=@)",
        r"(\b(?:set-)?(?:cookie|authorization)\s*:\s*(?:(?:bearer|basic|token)\s+)?)[^\n'\"]+",
        r"(\b(?:bearer|basic)\s+)[\w.~+/=-]{8,}",
        r"(--(?:token|password|cookie|header)[ =])\S+",
        rf"({_KEY}b?')[^']+",
        rf"({_KEY}b?\")[^\"]+",
        rf"({_KEY})(?![\s'\"*]|b['\"])[^\s'\"&,;)}}]+",
    )
)

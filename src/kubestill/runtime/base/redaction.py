"""Credentials stay out of logs, records and messages."""

from __future__ import annotations

import re


def redact(text: str) -> str:
    """Return the text without credentials: those in URIs, and what follows names of secrets."""
    for pattern in _SECRETS:
        text = pattern.sub(r"\1***", text)
    return text


def redact_uris(text: str) -> str:
    """Return the text without the credentials in its URIs; everything else stays as it is.

    For messages of our own, in which `redact` would take `give --cookie or --header` for a secret.
    """
    return _URI.sub(_redact_uri, text)


def _redact_uri(found: re.Match[str]) -> str:
    scheme, rest = found.groups()
    # Nobody reads a longer one, and the patterns below would take their time over it.
    return scheme + "***" if len(rest) > _LONGEST_URI else redact(scheme + rest)


_LONGEST_URI = 4096
_URI = re.compile(r"([a-z][a-z\d+.-]{0,30}://)([^\s'\"]+)", re.IGNORECASE)
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

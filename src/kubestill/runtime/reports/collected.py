"""What was collected, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["collected_text"]

_COLUMNS = {
    "taken": "taken",
    "late": "late",
    "not_due": "not due",
    "repeated": "taken before",
    "unlabelled": "no target",
    "timeless": "no time",
    "too_old": "too old",
}
_MOST = 30
"""Files that are listed one by one."""


def collected_text(status: str, reason: str, about: Mapping[str, Any]) -> str:
    """Return Markdown: the status and why, what changed about the columns, and each file."""
    lines = [f"**{status}**: {reason}", ""]
    told = about.get("told", [])
    if told:
        lines += ["What changed about the data:", "", *(f"- {line}" for line in told), ""]
    files = [file for file in about.get("files", []) if file["rows"]]
    if files:
        lines += [
            "| file | rows | " + " | ".join(_COLUMNS.values()) + " |",
            "|---" * (len(_COLUMNS) + 2) + "|",
        ]
        for file in files[:_MOST]:
            counts = " | ".join(f"{file[name]:,}" for name in _COLUMNS)
            lines.append(f"| {file['uri'].rpartition('/')[2]} | {file['rows']:,} | {counts} |")
        if files[_MOST:]:
            lines.append(f"\n{len(files) - _MOST} more files are listed in the registry.")
    return "\n".join(lines).rstrip() + "\n"

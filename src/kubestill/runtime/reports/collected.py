"""What was collected, in words."""

from __future__ import annotations

from collections.abc import Sequence

from kubestill.errors import counted
from kubestill.runtime.retraining.windows import Seen

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


def collected_text(status: str, reason: str, files: Sequence[Seen], told: Sequence[str]) -> str:
    """Return Markdown: the status and why, what changed about the columns, and each file."""
    lines = [f"**{status}**: {reason}", ""]
    if told:
        lines += ["What changed about the data:", "", *(f"- {line}" for line in told), ""]
    shown = [file for file in files if file.rows]
    if shown:
        lines += [
            "| file | rows | " + " | ".join(_COLUMNS.values()) + " |",
            "|---" * (len(_COLUMNS) + 2) + "|",
        ]
        for file in shown[:_MOST]:
            counts = " | ".join(f"{getattr(file, name):,}" for name in _COLUMNS)
            lines.append(f"| {file.uri.rpartition('/')[2]} | {file.rows:,} | {counts} |")
        if left := len(shown[_MOST:]):
            lines.append(f"\nThe registry lists {counted(left, 'more file')}.")
    return "\n".join(lines).rstrip() + "\n"

"""What commands say of a pipeline that gets near the limits of a workflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kubestill.terminal import echo

if TYPE_CHECKING:
    from kubestill.assets.packages import Package


def warn_of_size(package: Package, arguments: Mapping[str, Any] | None = None) -> None:
    """Warn before a run of this pipeline grows too large for Kubeflow to show, or to finish."""
    from kubestill.assets.size import size_warnings

    for warning in size_warnings(package.documents, arguments):
        echo(f"warning: {package.name}: {warning}", err=True)

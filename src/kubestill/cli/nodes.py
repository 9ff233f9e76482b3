"""What commands refuse of a pipeline whose training runs ask for several pods."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kubestill.assets.packages import Package


def refuse_without_trainer(package: Package, arguments: Mapping[str, Any] | None = None) -> None:
    """Refuse a pipeline with `nodes` for a cluster that is known to have no Kubeflow Trainer.

    Raises:
        ClusterError: It has none, or not the runtime that a step names.
    """
    from kubestill.client.kube import NotChecked
    from kubestill.client.trainer import check_trainer, find_runtimes

    if runtimes := find_runtimes(package.documents, arguments or {}):
        with suppress(NotChecked):
            check_trainer(runtimes)

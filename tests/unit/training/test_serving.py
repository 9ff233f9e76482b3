"""What serves a model without this package lies beside every export of a training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.steps.select_checkpoint import select_checkpoint


@pytest.mark.parametrize(("settings", "there"), [({}, True), ({"serving": "none"}, False)])
def test_a_selected_model_has_the_file_that_its_training_was_told_to_write(
    train: Callable[..., Path], tmp_path: Path, settings: dict[str, Any], there: bool
) -> None:
    out = train(settings={"serving": "torch"})
    assert (out / "model" / "model.pt2").exists()
    names = ("checkpoint", "model", "report", "summary")
    ports: dict[str, Any] = {
        name: LocalArtifact(str(tmp_path / f"selected-{name}")) for name in names
    }
    ledger = LocalArtifact(str(out / "ledger"), metadata={"kind": "ledger"})
    select_checkpoint(ledger=ledger, settings=settings, **ports)
    assert (tmp_path / "selected-model" / "model.pt2").exists() == there
